"""Which comparisons are bought, which are held out, and how a model is measured on them."""

import numpy as np
import pytest

from pipeline.config.labellers.reward_model import AccuracyGate, Discriminator
from pipeline.types import Group, Message, Prompt, Response
from reward_models.training.gold import choose_comparisons, comparison_of, gold_accuracy, held_out, passes


def response(*ids: int, text: str | None = None) -> Response:
    return Response(f"text {ids}" if text is None else text, ids, (), "stop")


def group(*responses: Response, name: str = "p", scores: tuple[float | None, ...] = ()) -> Group:
    return Group(Prompt((Message("user", name),)), (7,), responses, scores)


def test_two_different_responses_are_compared_by_lot() -> None:
    one, same_text, same_ids, empty, other = (
        response(1),
        response(2, text="text (1,)"),
        response(1, text="x"),
        response(3, text=" "),
        response(4),
    )
    found = comparison_of(group(one, same_text, same_ids, empty, other), 0, 1)
    assert found is not None and {r.token_ids for r in found.responses} == {(1,), (4,)}
    assert comparison_of(group(one, same_text, same_ids, empty), 0, 1) is None
    many = [comparison_of(group(*map(response, range(4)), name=str(n)), 0, 1) for n in range(300)]
    first = [g.responses[0].token_ids[0] for g in many if g is not None]
    assert all(50 < first.count(token) < 100 for token in range(4))
    assert comparison_of(group(*map(response, range(4))), 0, 1) == comparison_of(group(*map(response, range(4))), 0, 1)


def test_a_budget_goes_to_what_the_rule_ranks_first() -> None:
    asked = [group(response(1), response(2), name=str(n)) for n in range(4)]
    margins = [(3.0, 3.0), (0.5, -0.9), (-2.0, 2.2), (1.0, 1.0)]
    assert choose_comparisons(asked, 2, "uncertain", margins, 0, 1) == [asked[1], asked[2]]
    assert choose_comparisons(asked, 2, "disagreement", margins, 0, 1) == [asked[1], asked[2]]
    assert choose_comparisons(asked, 1, "uncertain", margins, 0, 1) == [asked[1]] or choose_comparisons(
        asked, 1, "uncertain", margins, 0, 1
    ) == [asked[2]]
    assert choose_comparisons(asked, 1, "disagreement", margins, 0, 1) == [asked[2]]
    assert choose_comparisons(asked, 9, "random", [], 0, 1) == asked
    drawn = [choose_comparisons(asked, 1, "random", [], seed, 1)[0].prompt.messages[0].content for seed in range(200)]
    assert all(25 < drawn.count(str(n)) < 75 for n in range(4))


def test_prompts_are_held_out_for_good() -> None:
    some = [group(name=str(n)) for n in range(1000)]
    kept = [held_out(g, 0.25, 0) for g in some]
    assert 200 < sum(kept) < 300 and kept == [held_out(g, 0.25, 0) for g in some]
    assert kept != [held_out(g, 0.25, 1) for g in some]


def test_accuracy_counts_what_gold_decides() -> None:
    gold = [
        group(response(1), response(2), scores=scores)
        for scores in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (None, 1.0), (2.0, 1.0), (2.0, 1.0))
    ]
    assert gold_accuracy(gold, [1.0, 1.0, 1.0, 1.0, 0.0, 0.2]) == (0.625, 4)
    assert gold_accuracy(gold[2:4], [1.0, 1.0]) == (None, 0)


def test_the_gate_says_why() -> None:
    gate = AccuracyGate()
    assert passes(13 / 16, 16, gate, 1) is None
    assert passes(0.59, 16, gate, 1) == "ranks 59.0% of 16 held-out comparisons rightly; at least 60%"
    assert passes(1.0, 15, gate, 1) == "15 held-out comparisons cannot tell; at least 16"
    assert passes(None, 0, AccuracyGate(comparisons=1), 1) is not None
    # Once enough: 10 of 16, which a coin does in 23 % of cases.
    lucky = "ranks 62.5% of 16 held-out comparisons rightly, as chance does in 22.7% of cases; in round 1 at most 2.50%"
    assert passes(10 / 16, 16, gate, 1) == lucky
    assert passes(10 / 16, 16, AccuracyGate(error=1), 1) is None
    # Later versions have more to show, on more comparisons.
    assert passes(13 / 16, 16, gate, 2) is not None and passes(44 / 64, 64, gate, 2) is None


def test_a_coin_passes_in_hardly_any_run_and_one_that_knows_something_does() -> None:
    """Ten rounds with 32 held-out comparisons more in each; a version's ranking is independent of the last one's."""
    rng, gate, runs = np.random.default_rng(0), AccuracyGate(), 2000

    def rate(accuracy: float, rounds: int, gate: AccuracyGate) -> float:
        right = [rng.binomial(32 * k, accuracy, size=runs) / (32 * k) for k in range(1, rounds + 1)]
        passed = [[passes(float(share), 32 * k, gate, k) is None for share in row] for k, row in enumerate(right, 1)]
        return float(np.mean(np.any(passed, axis=0)))

    assert rate(0.5, 10, AccuracyGate(error=1)) > 0.2
    assert rate(0.5, 10, gate) < 0.05
    assert rate(0.7, 3, gate) > 0.9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"select": "disagreement"}, "disagreement needs at least 2 members"),
        ({"select": "uncertain", "silver": "static"}, "silver is static"),
        ({"budget": 40}, "about 10 are held out"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Discriminator.model_validate(settings)
