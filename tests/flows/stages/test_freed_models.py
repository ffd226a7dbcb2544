"""Reward models leave memory with the stage that loaded them: the next one needs the room."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from flows.stages.context import Context
from flows.stages.evaluation import _model_metrics
from flows.stages.run import run_stage
from tests.support.tiny_model import tiny_tokenizer
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, supply, train

LEARNS = (
    "prompts_per_round=12", "discriminator.budget=8", "discriminator.gate={held_out: 0.25, comparisons: 1}",
    "discriminator.training={learning_rate: 3.0e-3, epochs: 1, batch_size: 4, warmup: 0}",
)  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The section of each labeller that loads a model."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(shape).save_pretrained(folder)
    classifier, pairwise = (f"kind: {kind}, path: {folder}" for kind in ("classifier", "pairwise"))
    members = ", ".join(f"{{scorer: {{{one}}}}}" for one in (classifier, "kind: match"))
    ensemble = f"kind: ensemble, members: [{members}]"
    return {"classifier": classifier, "pairwise": pairwise, "ensemble": ensemble}


def alive() -> list[PreTrainedModel]:
    """Classifiers in memory. Reference counts must be enough: when cycles are collected is not known."""
    return [found for found in gc.get_objects() if issubclass(type(found), LlamaForSequenceClassification)]


@contextmanager
def without_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def evaluate(context: Context, round_: int) -> None:
    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(context, round_, "evaluation_samples", workers)
    run_stage(context, round_, "evaluation")


@pytest.mark.parametrize(
    "kind",
    [
        "classifier",
        pytest.param("pairwise", marks=pytest.mark.whole),
        pytest.param("ensemble", marks=pytest.mark.whole),
    ],
)
def test_labels_evaluation_and_gate_keep_no_reward_model(
    job: Path, scorers: dict[str, str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[int] = []

    def scored(*given: Any) -> Any:
        here.append(len(alive()))
        return _model_metrics(*given)

    # The policies are loaded when the labels are there, so the reward model must be gone by then.
    monkeypatch.setattr("flows.stages.evaluation._model_metrics", scored)
    second = "kind: keywords, words: [barn]" if kind == "ensemble" else scorers[kind]
    settings = (f"scorer={{{scorers[kind]}}}", f"gate.second={{{second}}}", "evaluation.bootstrap=100")
    context = open_context(job, tmp_path / "run", "iterative", *settings)
    with without_collection():
        begin(context)
        evaluate(context, 0)
        assert here == [0] and not alive()
        supply(context, 1)
        assert not alive()
        run_stage(context, 1, "policy")
        evaluate(context, 1)
        assert here == [0, 0] and not alive()
        run_stage(context, 1, "gate")
        assert not alive()


def test_a_discriminator_leaves_memory_with_its_stage(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *LEARNS)
    with without_collection():
        begin(context)
        train(context, 1)
        assert not alive()
