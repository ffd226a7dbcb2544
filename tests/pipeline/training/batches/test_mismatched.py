"""Mismatched responses: each response serves once, with another prompt, whatever the order of the file."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from pipeline.training.batches import mismatched
from pipeline.training.batches.examples import Example
from pipeline.training.batches.mismatched import with_mismatched


def single(prompt: int, response: int, good: bool) -> Example:
    return Example.unpaired(f"{prompt}-{response}", (prompt,), (100 + response, prompt), good)


def given(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """The mismatched responses, after a look at their prompts."""
    found = []
    for example in with_mismatched(examples):
        assert example.mismatched is not None and example.mismatched.ids[1] != example.prompt_ids[0]
        found.append(example.mismatched.ids)
    return found


SIDE_BY_SIDE = [single(n, 2 * n + bad, not bad) for n in range(40) for bad in (0, 1)]


def test_every_response_serves_once_so_that_z0_is_that_of_the_whole_set() -> None:
    # Good responses are 4 nats likelier than under the reference, bad ones 4 nats less likely: the mean is 0.
    ratio = {example.responses[0].ids: 4.0 if example.desirable else -4.0 for example in SIDE_BY_SIDE}
    sorted_by_mark = sorted(SIDE_BY_SIDE, key=lambda example: not example.desirable)
    for order in (SIDE_BY_SIDE, sorted_by_mark):
        found = given(order)
        assert Counter(found) == Counter(example.responses[0].ids for example in order)
        assert sum(ratio[ids] for ids in found) == 0


def test_what_goes_together_does_not_depend_on_the_order_of_the_file() -> None:
    shuffled = random.Random(0).sample(SIDE_BY_SIDE, len(SIDE_BY_SIDE))
    pairs, others = ({e.id: e.mismatched for e in with_mismatched(order)} for order in (SIDE_BY_SIDE, shuffled))
    assert pairs == others and len(pairs) == 80


def test_prompts_with_unequal_numbers_of_responses_exchange_them_too() -> None:
    rows = [single(n, 10 * n + k, True) for n, count in enumerate([5, 1, 3, 1, 2]) for k in range(count)]
    assert Counter(given(rows)) == Counter(example.responses[0].ids for example in rows)


def test_where_one_prompt_has_most_responses_it_takes_those_of_the_others() -> None:
    rows = [single(0, k, True) for k in range(6)] + [single(1, 7, True), single(2, 8, False)]
    assert {(107, 1), (108, 2)} <= set(given(rows))
    alone = [*with_mismatched([single(0, 1, True), single(0, 2, False)])]
    assert [example.mismatched is not None for example in alone] == [True, True]


def test_long_data_is_exchanged_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mismatched, "WINDOW", 16)
    rows = [single(n, n, n % 2 == 0) for n in range(70)]
    found = given(rows)
    assert Counter(found) == Counter(example.responses[0].ids for example in rows)
    # At most two windows away.
    assert all(abs(ids[1] - place) < 32 for place, ids in enumerate(found))


@pytest.mark.parametrize("order", ["first", "middle", "last"])
def test_a_prompt_that_fills_a_window_takes_responses_of_others(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mismatched, "WINDOW", 8)
    many, others = [single(0, k, True) for k in range(40)], [single(n, 50 + n, True) for n in range(1, 21)]
    rows = {"first": [*many, *others], "middle": [*others[:10], *many, *others[10:]], "last": [*others, *many]}[order]
    assert len(given(rows)) == 60


def test_pairs_need_none() -> None:
    pairs = [Example.pair(str(n), (n,), (1,), (2,)) for n in range(3)]
    assert [*with_mismatched(pairs)] == pairs
