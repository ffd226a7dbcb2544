"""Histograms and examples of what would be trained on."""

from flows.report.pair_preview import histogram, preview
from pipeline.types import Group, Message, Pair, Preference, Prompt, Response, Unpaired

PROMPT = Prompt((Message("user", "p"),))


def response(length: int) -> Response:
    return Response("t", (1,) * length, (), "stop")


def test_a_histogram_counts_every_value_once_the_largest_in_the_last_bin() -> None:
    found = histogram([0.0, 0.5, 1.0, 9.9, 10.0], bins=10)
    assert found.edges == tuple(float(edge) for edge in range(11))
    assert found.counts == (2, 1, 0, 0, 0, 0, 0, 0, 0, 2)
    assert histogram([3.0, 3.0]).counts == (2,) and histogram([]).counts == ()


def test_pairs_show_margins_lengths_and_whether_longer_wins() -> None:
    rows: list[Preference] = [Pair(PROMPT, (7,), response(n), response(2), float(n), 1.0) for n in (1, 2, 3, 4)] + [
        Pair(PROMPT, (7,), response(9), response(2))
    ]
    seen = preview(rows)
    assert (seen.kind, seen.rows, seen.longer_chosen) == ("pair", 5, 0.75)
    assert sum(seen.margins.counts) == 4 and (seen.margins.edges[0], seen.margins.edges[-1]) == (0.0, 3.0)
    assert seen.lengths["chosen"].edges[-1] == 9 and seen.lengths["rejected"].counts == (5,)
    assert seen.examples == tuple(rows)


def test_groups_and_marked_responses_have_sides_of_their_own() -> None:
    group = Group(PROMPT, (7,), (response(1), response(3)), (0.5, 2.5))
    seen = preview([group])
    assert seen.kind == "group" and seen.margins.edges == (2.0, 2.0) and sum(seen.lengths["responses"].counts) == 2
    marked = [Unpaired(PROMPT, (7,), response(n), n > 1) for n in (1, 2, 2)]
    seen = preview(marked)
    assert {name: sum(h.counts) for name, h in seen.lengths.items()} == {"bad": 1, "good": 2}
    assert seen.longer_chosen is None and seen.margins.counts == ()


def test_ten_examples_are_drawn_by_lot() -> None:
    rows = [Pair(PROMPT, (n,), response(1), response(2)) for n in range(100)]
    drawn = [row.prompt_ids[0] for row in preview(rows, seed=1).examples if isinstance(row, Pair)]
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) and drawn != list(range(10))
    assert preview(rows, seed=1) == preview(rows, seed=1) != preview(rows, seed=2)
