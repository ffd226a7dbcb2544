"""The first step's self-test: policy and stored reference must be the same model."""

import math
from dataclasses import replace

import pytest
from accelerate import Accelerator

from pipeline.errors import RunError
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.weight_format import Precision
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.watch.self_test import check_policy_is_reference
from tests.support.loss_examples import examples_for, loss_named
from tests.support.tiny_training import pairs_with_reference, tiny_llama, under_references


def shifted(example: Example, nats: float) -> Example:
    """``example`` with a reference that is off by ``nats`` at every chosen token."""
    chosen, rejected = example.responses
    off = replace(chosen, references=(tuple(x + nats for x in chosen.references[0]),))
    return replace(example, responses=(off, rejected))


def difference(examples: list[Example], dtype: Precision) -> float:
    return check_policy_is_reference(TokenLogps(tiny_llama()), examples, Cut(2), Accelerator(), dtype)


def test_the_first_step_compares_the_mean_over_the_tokens_of_the_whole_batch() -> None:
    pairs = [
        *(Example.pair(f"short{i}", (3, 4), (5,), (6,)) for i in range(2)),
        Example.pair("long", (3, 4), (5, 6, 7, 8, 9) * 4, (6, 7, 8, 9, 10) * 4),
    ]
    short, other, long = under_references(pairs, tiny_llama())
    assert difference([shifted(short, 0.88), other, long], "bfloat16") == pytest.approx(0.88 / 44, abs=1e-5)
    with pytest.raises(RunError, match=r"by 0\.0273 nats .*, by 1\.2 in a response of example short0 \(allowed 1\)"):
        difference([shifted(short, 1.2), other, long], "bfloat16")
    with pytest.raises(RunError, match=r"by 0\.11 nats per token \(allowed 0\.1\), by 0\.242 in .* example long"):
        difference([short, other, shifted(long, 0.242)], "bfloat16")
    with pytest.raises(RunError, match=r"by nan nats .* example short1"):
        difference([short, shifted(other, math.nan), long], "bfloat16")


def test_in_float32_every_response_must_be_the_reference() -> None:
    pairs = pairs_with_reference(tiny_llama(), 7)
    assert difference(pairs, "float32") < 1e-5
    assert difference([shifted(pairs[0], 5e-4), *pairs[1:]], "float32") > 1e-5
    with pytest.raises(RunError, match=r"by 0\.002 in a response of example pair0 \(allowed 0\.001\)"):
        difference([shifted(pairs[0], 2e-3), *pairs[1:]], "float32")


@pytest.mark.parametrize("name", ["kto", "rpo_sqloo", "mrpo"])
def test_responses_of_every_kind_are_compared_with_the_first_reference(name: str) -> None:
    loss = loss_named(name)
    examples = examples_for(loss, 3, tiny_llama(), tiny_llama(seed=1))
    assert difference(examples, "float32") < 1e-5
    last = examples[2].responses[-1]
    off = replace(last, references=(tuple(x + 0.1 for x in last.references[0]), last.references[1]))
    changed = replace(examples[2], responses=(*examples[2].responses[:-1], off))
    with pytest.raises(RunError, match=rf"by 0\.1 in a response of example {changed.id} "):
        difference([*examples[:2], changed], "float32")


def test_dropout_does_not_make_them_differ() -> None:
    policy = TokenLogps(tiny_llama(dropout=0.5).train())
    pairs = pairs_with_reference(tiny_llama(), 4)
    assert check_policy_is_reference(policy, pairs, Cut(2), Accelerator(), "float32") < 1e-5
    assert policy.training and policy.model.training
