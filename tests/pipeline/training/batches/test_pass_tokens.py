"""Tokens of a pass over the data, told before training, are those that its passes compute."""

import pytest

from pipeline.losses import load_preset
from pipeline.training.batches.collate import plan_epoch
from pipeline.training.batches.examples import Example, Survey, check_examples
from pipeline.training.batches.micro_batches import Cut, micro_batches, tokens_of_a_pass
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.train import Trainee, train
from tests.support.loss_examples import settings
from tests.support.tiny_training import random_groups, random_pairs, random_texts, tiny_llama, under_references

LOSSES = {"pair": "simpo", "group": "rpo_sqloo", "text": "sft"}


def survey(examples: list[Example]) -> Survey:
    loss = load_preset(LOSSES[examples[0].kind])
    return check_examples(examples, loss.name, loss.needs)


def test_a_pass_over_two_pairs_by_hand() -> None:
    pairs = [Example.pair("0", (3,) * 5, (4,) * 2, (5,) * 3), Example.pair("1", (6,), (7,), (8,))]
    # 5 + 2 + 3 and 1 + 1 + 1 tokens; each prompt once more; four rows of 8.
    assert tokens_of_a_pass(survey(pairs), 2, Cut(9), 0) == PassTokens(shared=13, packed=19, padded=32)
    assert tokens_of_a_pass(survey(pairs), 2, Cut(1, packing=True), 0).padded == 2 * 8 + 2 * 2


@pytest.mark.parametrize(
    "examples",
    [random_pairs(23), under_references(random_groups(11), tiny_llama()), random_texts(23)],
    ids=["pairs", "groups", "texts"],
)
def test_they_are_what_passes_compute(examples: list[Example]) -> None:
    sizes = survey(examples)
    for cut in (Cut(5, 90), Cut(3), Cut(9, 1)):
        computed = 0
        for batch in plan_epoch(sizes.lengths, sizes.tokens, 7, 0, 0):
            computed += sum(one.computed for one in micro_batches([examples[i] for i in batch], cut))
        found = tokens_of_a_pass(sizes, 7, cut, 0)
        assert found.padded == computed
        assert found.shared == sum(e.distinct_tokens for e in examples)
        assert found.packed == sum(e.tokens for e in examples)


def test_training_tells_them_before_its_first_step() -> None:
    pairs, told = random_pairs(9), list[tuple[PassTokens, str | None, int]]()
    steps: list[int] = []
    for packing, why in ((True, None), (False, "packing is off")):
        asked = settings(batch_size=4, epochs=1.0, packing=packing)
        steps.clear()
        result = train(
            Trainee(tiny_llama()),
            pairs,
            load_preset("simpo"),
            asked,
            seed=0,
            on_start=lambda tokens, reason: told.append((tokens, reason, len(steps))),
            on_step=lambda step: steps.append(step.step),
        )
        assert told[-1] == (result.passes, why, 0) and len(steps) == 3
        expected = round(sum(step.tokens / (1 - step.padding) for step in result.history))
        assert result.passes is not None
        assert expected == (result.passes.shared if packing else result.passes.padded)


def test_the_line_says_how_rows_are_computed_why_and_what_it_costs() -> None:
    tokens = PassTokens(1000, 1500, 1800)
    assert tokens.line(None) == (
        "prompts are shared: 1,000 tokens in a pass over the data; padded rows would be 1.80 times as many"
    )
    assert PassTokens(1000, 1000, 1800).line(None).startswith("rows are packed: 1,000 tokens")
    assert tokens.line("M: layer 3 keeps a recurrent state") == (
        "rows are padded: M: layer 3 keeps a recurrent state; 1,800 tokens in a pass over the data, 1.80 times those "
        "with shared prompts, 1.20 times those of packed rows"
    )
