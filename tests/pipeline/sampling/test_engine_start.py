"""What the engines are started with: the context that a run needs, and safetensors alone."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from flows.workers.local import Workers, with_context
from pipeline import config
from pipeline.config.files import load_config
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.sampling.sampler import EngineOptions, engine_context
from pipeline.sampling.server_engine import ServerEngine
from pipeline.sampling.transformers_engine import TransformersEngine
from tests.support.tiny_model import CONTEXT, save_tiny_model
from tests.support.tiny_sampler import vllm_process, write_true_probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return load_chat(str(folder), config.ChatSettings())


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [("{kind: vllm}", 141), ("{kind: server}", 141), ("{kind: vllm, context: 77}", 77), ("{kind: transformers}", None)],
)
def test_the_context_of_a_run_is_what_its_prompts_and_responses_need(
    tmp_path: Path, sampler: str, expected: int | None
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"name: short\nmode: offline\npolicy: {{path: {tmp_path}}}\npairs: {{path: pairs.jsonl}}\n"
        f"chat: {{max_prompt_tokens: 100}}\nsampling: {{max_tokens: 40}}\nsampler: {sampler}\n"
    )
    run = load_config([file])
    assert getattr(with_context(run), "context", None) == expected
    assert Workers(tmp_path, run)._sampler._settings == with_context(run)


@pytest.mark.parametrize(
    ("wanted", "model", "expected"),
    [
        (641, {"max_position_embeddings": 131072}, 641),
        (641, {"max_position_embeddings": 320}, 320),
        (641, {"n_positions": 320}, 320),
        (641, {"text_config": {"max_position_embeddings": 320}}, 320),
        (641, {"max_position_embeddings": None}, 641),
        (None, {"max_position_embeddings": 320}, None),
    ],
)
def test_a_context_beyond_the_model_s_own_is_clipped(
    tmp_path: Path, wanted: int | None, model: dict[str, object], expected: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert engine_context(wanted, str(tmp_path)) == expected


@pytest.mark.whole
def test_a_vllm_engine_starts_with_a_context_beyond_the_model_s_own(tmp_path: Path, folder: Path) -> None:
    with vllm_process(tmp_path / "log", context=CONTEXT + 1) as process:
        process.load(str(write_true_probe(folder)))
        assert len(process.score([[7] * CONTEXT])[0]) == CONTEXT - 1
        with pytest.raises(UserError, match=f"context of {CONTEXT} tokens"):
            process.score([[7] * (CONTEXT + 1)])


def test_a_server_started_here_is_given_the_clipped_context(folder: Path, chat: Chat) -> None:
    engine = ServerEngine.__new__(ServerEngine)
    engine._settings, engine._options = config.ServerSampler(context=CONTEXT + 1), EngineOptions()
    command = engine._serve_command(str(folder), 1)
    assert command[command.index("--max-model-len") + 1] == str(CONTEXT)


def test_pickled_weights_are_not_opened(tmp_path: Path, chat: Chat, folder: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(RunError, match="safetensors"):
        TransformersEngine(str(tmp_path), chat, config.TransformersSampler())
