"""How a round ranks held-out pairs, against the start and three baselines."""

import math

import pytest

from pipeline.evaluation.held_out import RankedPair, baseline_line, best_baseline, pair_measures


def pairs(count: int, right: int) -> list[RankedPair]:
    """The policy ranks the first ``right`` as labelled, by 2; the start knows nothing; every other chosen is longer."""
    return [
        RankedPair(n, 2.0 if n < right else -2.0, 0.0, 5 + n % 2, 5 + (n + 1) % 2, 1.0 if n < count // 4 else -1.0)
        for n in range(count)
    ]


def test_accuracy_margin_and_log_loss_are_compared_with_the_start_pair_by_pair() -> None:
    found = pair_measures(pairs(40, 30), 200, 0)
    means = {name: interval.mean for name, interval in found.items()}
    assert (means["accuracy"], means["accuracy_vs_start"]) == (0.75, 0.25)
    assert (means["margin"], means["margin_vs_start"]) == (1.0, 1.0)
    loss = 0.75 * math.log1p(math.exp(-2)) + 0.25 * (2 + math.log1p(math.exp(-2)))
    assert means["log_loss"] == pytest.approx(loss)
    assert means["log_loss_vs_start"] == pytest.approx(loss - math.log(2))
    assert all(interval.low < interval.mean < interval.high for interval in found.values())
    assert found["accuracy"].low > 0.55 and found["accuracy_vs_start"].low > 0.05


def test_baselines_rank_by_length_and_by_the_start() -> None:
    found = pair_measures(pairs(40, 30), 200, 0)
    assert [found[f"accuracy_of_{name}"].mean for name in ("longer", "shorter", "start_logp")] == [0.5, 0.5, 0.25]
    assert found["accuracy_vs_best_baseline"].mean == 0.25
    assert best_baseline({"longer": 0.5, "shorter": 0.6, "start_logp": 0.6}) == "shorter"


def test_the_baseline_that_is_led_is_the_one_that_is_named() -> None:
    """Ten pairs of one prompt favour the longer response, one of each of four others the shorter."""
    longer = [RankedPair("a", 2.0, 0.0, 5, 4, 0.0)] * 10
    found = pair_measures([*longer, *(RankedPair(n, 2.0, 0.0, 4, 5, 0.0) for n in range(4))], 200, 0)
    assert found["accuracy_of_longer"].mean == pytest.approx(0.2)
    assert found["accuracy_of_shorter"].mean == pytest.approx(0.8)
    assert found["accuracy_vs_best_baseline"].mean == pytest.approx(1.0 - 0.8)


def test_several_pairs_of_a_prompt_count_as_one_row() -> None:
    one = RankedPair("a", 2.0, 0.0, 5, 4, 1.0)
    others = [RankedPair(n, -2.0, 0.0, 5, 4, 1.0) for n in range(9)]
    assert pair_measures([one] * 30 + others, 200, 0)["accuracy"].mean == pytest.approx(0.1)


@pytest.mark.parametrize(("right", "said"), [(36, "surely above"), (22, "not surely above"), (4, "surely below")])
def test_a_round_that_does_no_better_than_a_baseline_says_so(right: int, said: str) -> None:
    found = pair_measures(pairs(40, right), 200, 0)
    metrics: dict[str, object] = {"round": 1, "held_out_pairs": 40}
    metrics |= {f"held_out_{name}": interval.mean for name, interval in found.items()}
    metrics |= {f"held_out_{name}_ci": [interval.low, interval.high] for name, interval in found.items()}
    line = baseline_line(metrics)
    assert line is not None and f"{right / 40:.1%} of 40 held-out pairs ranked as labelled, {said} the best" in line
    assert "the longer response wins, 50.0%" in line
    assert baseline_line({**metrics, "round": 0}) is None and baseline_line({"round": 1}) is None
