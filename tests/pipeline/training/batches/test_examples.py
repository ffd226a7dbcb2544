"""Examples and what is refused of them before anything runs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.losses import load_preset
from pipeline.training.batches.examples import Continuation, Example, check_examples
from tests.support.tiny_training import (
    random_groups,
    random_pairs,
    random_texts,
    random_unpaired,
    tiny_llama,
    under_references,
)


def scored(*sides: tuple[int, ...], **settings: Any) -> Example:
    """A pair "p", or what ``settings`` say, with one reference log-probability a token."""
    responses = tuple(Continuation(ids, ((-1.0,) * len(ids),)) for ids in sides)
    return Example(**{"id": "p", "prompt_ids": (1,), "kind": "pair", "responses": responses, **settings})


def each(example: Example, **values: Any) -> Example:
    return replace(example, responses=tuple(replace(c, **values) for c in example.responses))


PAIR = scored((2,), (3, 4))
SINGLE = scored((2,), kind="unpaired", desirable=True)
GROUP = each(scored((2,), (3, 4), (5,), kind="group"), reward=1.0)


def test_length_and_tokens_are_those_of_all_continuations() -> None:
    pair = Example.pair("a", (1, 1), (2,), (3, 4, 5))
    assert (pair.length, pair.tokens, pair.response_tokens) == (5, 8, 4)
    more = replace(pair, calibration=Continuation((6,) * 7))
    assert (more.length, more.tokens, more.response_tokens) == (9, 17, 11)


def test_continuations_are_replaced_in_their_order() -> None:
    calibration, mismatched = Continuation((6,)), Continuation((7,))
    for extra in ({}, {"calibration": calibration}, {"mismatched": mismatched}):
        example = replace(PAIR, **extra)
        assert example.with_continuations(example.continuations) == example
    both = replace(PAIR, calibration=calibration, mismatched=mismatched)
    changed = both.with_continuations([Continuation((n,)) for n in range(4)])
    assert [c.ids for c in changed.continuations] == [(0,), (1,), (2,), (3,)]
    assert (changed.calibration, changed.mismatched) == (Continuation((2,)), Continuation((3,)))
    with pytest.raises(ValueError, match="1 continuations for the 2 of p"):
        PAIR.with_continuations([calibration])


@pytest.mark.parametrize(
    ("preset", "examples", "message"),
    [
        ("dpo", [], "no examples"),
        ("dpo", [PAIR, Example.text("t", (1,), (2,))], "kinds pair and text in one run"),
        ("dpo", [PAIR, Example.text("t", (1,), (2,))][1:], "example t: loss dpo needs a rejected response"),
        ("rrhf", [Example.text("t", (1,), (2,))], "example t: loss rrhf needs a rejected response"),
        ("dpo", [scored((), (2,))], "example p: a response without tokens"),
        ("dpo", [scored((2,), ())], "example p: a response without tokens"),
        ("dpo", [replace(PAIR, calibration=Continuation(()))], "example p: a response without tokens"),
        ("dpo", [scored((2,), (3,), prompt_ids=())], "example p: no prompt tokens"),
        ("dpo", [scored((2,), (3,), (4,))], "example p: a pair of 3 responses"),
        ("dpo", [Example.pair("r", (1,), (2,), (3,))], r"example r: loss dpo needs one reference log-prob.*\(chosen\)"),
        (
            "dpo",
            [each(PAIR, references=((-1.0,),))],
            r"needs one reference log-probability per response token \(rejected",
        ),
        (
            "apo_accelerated",
            [PAIR],
            "needs one reference log-probability per response token under each of 2 references",
        ),
        ("kto", [replace(PAIR, soft_label=0.9)], "soft label 0.9; loss kto has one-sided terms"),
        ("dpo", [SINGLE], "loss dpo compares responses; it cannot use single ones"),
        ("bco", [replace(SINGLE, desirable=None)], "neither marked good nor bad"),
        ("kto", [SINGLE], r"loss kto needs a response to another prompt \(mismatched\)"),
        ("kto", [replace(SINGLE, mismatched=Continuation((4,)))], r"needs one reference .*\(mismatched\)"),
        ("dpo", [GROUP], "loss dpo compares two responses; it cannot use groups"),
        ("rpo_sqloo", [scored((2,), kind="group")], "a group of 1 response; loss rpo_sqloo compares at least 2"),
        ("rpo_sqloo", [each(GROUP, reward=None)], r"needs a reward for each response \(reward of response 1\)"),
        ("rrhf", [each(GROUP, reward=None)], "needs a reward for each response"),
        ("rpo_sqloo", [PAIR], r"needs a reward for each response \(reward of chosen\)"),
        ("rpo_sq", [PAIR], r"needs a reward for each response \(reward of chosen\)"),
        ("sppo", [PAIR], r"needs the probability that chosen wins \(win_probability\)"),
        ("mallows_theta", [PAIR], r"loss mallows_theta needs the dispersion of the prompt \(dispersion\)"),
        ("tis_dpo", [PAIR], r"loss tis_dpo needs one weight per response token \(weights of chosen\)"),
        ("tis_dpo", [each(PAIR, weights=(1.0,))], r"weights of rejected"),
        ("xpo", [replace(PAIR, calibration=Continuation((4,)))], r"needs one reference .*\(calibration\)"),
        ("xpo", [PAIR], r"loss xpo needs a response of the calibration policy \(calibration\)"),
    ],
)
def test_examples_that_the_loss_cannot_take_are_refused(preset: str, examples: list[Example], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_examples(examples, load_preset(preset).name, load_preset(preset).needs)


def test_a_given_prior_must_be_there() -> None:
    loss = load_preset("mi_dpo", prior={"kind": "given"})
    with pytest.raises(UserError, match=r"needs the log-prior of each response \(prior of chosen\)"):
        check_examples([PAIR], loss.name, loss.needs)
    check_examples([each(PAIR, prior=-3.0)], loss.name, loss.needs)


@pytest.mark.parametrize(
    ("preset", "make"),
    [
        ("sft", random_texts),
        ("dpo", random_pairs),
        ("simpo", random_pairs),
        ("kto", random_pairs),
        ("kto", random_unpaired),
        ("bco", random_unpaired),
        ("rpo_sqloo", random_groups),
        ("rrhf", random_groups),
        ("rrhf", random_pairs),
        ("exo", random_pairs),
        ("sparsepo", random_pairs),
        ("bmc", random_pairs),
    ],
)
def test_examples_that_suit_the_loss_pass(preset: str, make: Callable[[int], list[Example]]) -> None:
    check_examples(under_references(make(2), tiny_llama()), load_preset(preset).name, load_preset(preset).needs)
