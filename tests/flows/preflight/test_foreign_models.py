"""Model folders that do not fit what is asked of them are refused before anything is paid for."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from flows.preflight import model_folders
from flows.preflight.check import check_fetched, check_run
from flows.preflight.labellers import check_scorer
from flows.preflight.model_folders import check_classifier_start, check_folder
from pipeline.config import ClassifierScorer, KeywordScorer, PairwiseScorer, PretrainedPolicy, RunConfig
from pipeline.config.files import dump_config, load_settings
from pipeline.errors import UserError
from pipeline.models.loading.rope import steady_length
from pipeline.models.policy import load_policy
from pipeline.types import Message, Prompt
from reward_models.rules import KeywordReward
from tests.support.tiny_families import FAMILIES, save_family
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer


def run_config(folder: Path, prompt: str = "the cat", **given: object) -> RunConfig:
    data = folder / "prompts.jsonl"
    rows = [{"prompt": f"{prompt} {number}", "answer": "x"} for number in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig.model_validate(
        {
            "name": "x",
            "mode": "iterative",
            "policy": {"kind": "pretrained", "path": str(folder / "model")},
            "prompts": {"kind": "file", "path": str(data)},
            "held_out": {"prompts": 2},
            "scorer": {"kind": "match"},
            **given,
        }
    )


def test_a_token_without_an_embedding_is_found_before_sampling(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    contents, _ = check_run(run_config(tmp_path))
    assert contents.prompts == 6
    tokenizer, rows = tiny_tokenizer(), len(tiny_tokenizer())
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(model)
    assert check_run(run_config(tmp_path))[0].prompts == 6
    with pytest.raises(
        UserError, match=rf"row 1: policy\.path: .*'zebra' the id {rows}, .*embeddings for {rows} tokens"
    ):
        check_run(run_config(tmp_path, "the zebra"))
    # No share of the rows may have such a token: a limit is for rows that are dropped.
    with pytest.raises(UserError, match=rf"row 1: policy\.path: .*embeddings for {rows} tokens"):
        check_run(run_config(tmp_path, "the zebra", limits={"refused": 1}))


def test_what_the_reward_model_cannot_read_is_within_no_limit(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    reward = save_tiny_model(tmp_path / "reward")
    settings = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "LABEL_0"}}))
    scorer = {"kind": "classifier", "path": str(reward)}
    assert check_run(run_config(tmp_path, scorer=scorer))[0].prompts == 6
    tokenizer, rows = tiny_tokenizer(), len(tiny_tokenizer())
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(reward)
    with pytest.raises(UserError, match=rf"row 1: scorer\.path: .*'zebra' the id {rows}, .*embeddings for {rows} tok"):
        check_run(run_config(tmp_path, "the zebra", scorer=scorer, limits={"refused": 1}))
    tiny_tokenizer(template="{{ raise_exception('never') }}").save_pretrained(reward)
    with pytest.raises(UserError, match=r"row 1: scorer\.path: .*refuses turns user, assistant: never"):
        check_run(run_config(tmp_path, scorer=scorer, limits={"refused": 1}))


def test_an_adapter_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"policy\.path: .*: an adapter \(LoRA\), not a whole model; .*'owner/base' first"
    ):
        check_folder(tmp_path, "policy.path")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": [1]}')
    with pytest.raises(UserError, match="the model that it was trained on"):
        check_folder(tmp_path, "policy.path")


def test_an_adapter_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    # transformers would put the adapter on the model, and save it alone.
    (save_tiny_model(tmp_path / "model") / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "owner/base"}'
    )
    with pytest.raises(UserError, match=r"^policy\.path: .*adapter_config\.json beside config\.json.*policy\.adapter"):
        check_run(run_config(tmp_path))
    with pytest.raises(UserError, match=r"adapter_config\.json beside config\.json"):
        load_policy(str(tmp_path / "model"))


def test_a_hub_model_is_checked_when_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "model")
    config = run_config(tmp_path).model_copy(update={"policy": PretrainedPolicy(path="owner/model")})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *given, **named: str(model))
    check_fetched(config)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(UserError, match=r"policy\.path: .*quantised weights \(mxfp4\)"):
        check_fetched(config)
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"policy\.path: .*model_type 'bert'"):
        check_fetched(config)


def test_a_reward_model_with_several_outputs_needs_one_named(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(UserError, match=r"scorer\.outputs: must be given, since .* has 2 outputs \(0: bad, 1: good\)"):
        check_scorer(ClassifierScorer(path=str(model)))
    plain = ClassifierScorer(path=str(model))
    (tmp_path / "written.yaml").write_text(dump_config(plain))
    again = load_settings(ClassifierScorer, [tmp_path / "written.yaml"])
    with pytest.raises(UserError, match=r"scorer\.outputs: must be given"):
        check_scorer(again)
    first = ClassifierScorer(path=str(model), outputs={0: 1})
    assert first.identity() == plain.identity() == {**plain.identity(), "outputs": {"0": 1.0}}
    check_scorer(first)
    check_scorer(ClassifierScorer(path=str(model), outputs={0: -1, 1: 1}))
    (model / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "LABEL_0"}}))
    check_scorer(ClassifierScorer(path=str(model)))


def test_keywords_without_words_or_an_answer_name_both_settings() -> None:
    with pytest.raises(UserError, match=r"scorer\.words, which is not set, .*columns\.answer"):
        KeywordReward(KeywordScorer()).keywords(Prompt((Message("user", "the cat"),)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "vit"}, "model_type 'vit', which transformers cannot load as a language model"),
        ({"model_type": "t5"}, "model_type 't5', which transformers cannot load as a language model"),
        ({"model_type": "no_such_model"}, "model_type 'no_such_model', which transformers .* does not know"),
        ({"model_type": "llama", "hidden_size": "many"}, "transformers cannot read its config.json"),
    ],
)
def test_a_config_that_is_no_language_model_s_is_refused(given: dict[str, str], message: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (model / "config.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=rf"policy\.path: .*{message}"):
        check_run(run_config(tmp_path))


def scaled(folder: Path, **rope: object) -> Path:
    """A tiny model whose positions are scaled in long passes."""
    model = save_tiny_model(folder)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "rope_parameters": {"rope_theta": 1e4, **rope}}))
    return model


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


def test_positions_that_are_scaled_by_the_pass_s_length_are_refused_beyond_the_first_scale(tmp_path: Path) -> None:
    scaled(tmp_path / "model", **LONG, **FACTORS)
    chat = {"max_prompt_tokens": 32, "max_response_tokens": 32}
    config = run_config(tmp_path, chat=chat, sampling={"max_tokens": 31})
    assert check_run(config)[0].prompts == 6
    with pytest.raises(UserError, match=r"policy\.path: .*more than 64 tokens.* may have 65; allowed are 64 at most"):
        check_run(run_config(tmp_path, chat=chat, sampling={"max_tokens": 32}))


@pytest.mark.parametrize("sampler", [{"kind": "vllm"}, {"kind": "server"}])
def test_vllm_on_a_model_with_images_needs_torchvision(
    sampler: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(FAMILIES["gemma 3 with images"](), tmp_path / "model")
    monkeypatch.setattr(model_folders, "find_spec", lambda name: None)
    given: dict[str, Any] = {"chat": {"max_prompt_tokens": 32, "max_response_tokens": 32}}
    with pytest.raises(
        UserError, match=rf"sampler\.kind: {sampler['kind']}: .*vision_config.* sampler\.kind=transformers"
    ):
        check_run(run_config(tmp_path, sampler=sampler, **given))
    theirs = {"kind": "server", "base_url": "http://127.0.0.1:8000/v1", "model": "m"}
    for other in ({"kind": "transformers"}, theirs):
        assert check_run(run_config(tmp_path, sampler=other, **given))[0].prompts == 6
    monkeypatch.setattr(model_folders, "find_spec", lambda name: name)
    assert check_run(run_config(tmp_path, sampler=sampler, **given))[0].prompts == 6
    save_tiny_model(tmp_path / "text")
    monkeypatch.setattr(model_folders, "find_spec", lambda name: None)
    text = {"kind": "pretrained", "path": str(tmp_path / "text")}
    assert check_run(run_config(tmp_path, sampler=sampler, policy=text, **given))[0].prompts == 6


def test_dynamic_scaling_is_refused_beyond_the_context(tmp_path: Path) -> None:
    scaled(tmp_path / "model", rope_type="dynamic", factor=4.0)
    chat = {"max_prompt_tokens": 160, "max_response_tokens": 160}
    assert check_run(run_config(tmp_path, chat=chat, sampling={"max_tokens": 159}))[0].prompts == 6
    message = r"policy\.path: .*more than 320 tokens \(RoPE 'dynamic'\).* may have 321; allowed are 320 at most"
    with pytest.raises(UserError, match=message):
        check_run(run_config(tmp_path, chat=chat, sampling={"max_tokens": 160}))


def test_of_labellers_and_reward_models_positions_are_looked_at_too(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    path = str(scaled(tmp_path / "reward", **LONG, **FACTORS))
    check_scorer(ClassifierScorer(path=path, outputs={0: 1}, max_tokens=64))
    with pytest.raises(
        UserError, match=r"scorer\.path: .*longrope.* may have 65; .* 64 at most for scorer\.max_tokens"
    ):
        check_scorer(ClassifierScorer(path=path, outputs={0: 1}, max_tokens=65))
    check_scorer(PairwiseScorer(path=path, max_prompt_tokens=44, max_response_tokens=10))
    with pytest.raises(UserError, match=r"may have 65; .* scorer\.max_prompt_tokens \+ 2 scorer\.max_response_tokens"):
        check_scorer(PairwiseScorer(path=path, max_prompt_tokens=45, max_response_tokens=10))
    check_classifier_start(Path(path), "", "model.path", 64)
    with pytest.raises(UserError, match=r"^model\.path: .* may have 65; allowed are 64 at most for max_tokens"):
        check_classifier_start(Path(path), "", "model.path", 65)
    with pytest.raises(UserError, match=r"^discriminator\.start: .* 64 at most for discriminator\.max_tokens"):
        check_classifier_start(Path(path), "discriminator", "start", 65)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ({"rope_scaling": {"type": "su", "original_max_position_embeddings": 4}}, (4, "longrope")),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4}, (4, "longrope")),
        (
            {"rope_parameters": {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}},
            (64, "longrope"),
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, (4096, "dynamic")),
        ({"rope_parameters": {**LONG, "original_max_position_embeddings": 4096}}, None),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, None),
        ({"rope_parameters": {"rope_type": "llama3"}}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": "x"}}, None),
    ],
)
def test_the_length_up_to_which_positions_are_steady(text: dict[str, Any], limit: tuple[int, str] | None) -> None:
    assert steady_length({"max_position_embeddings": 4096, **text}) == limit
