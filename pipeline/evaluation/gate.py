"""The gate's rules: from what was measured after a round to a decision, with its reasons in words. Torch-free.

A rule is broken only when the whole interval lies beyond its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from pipeline.config import Gate
from pipeline.config.base import Closed
from pipeline.evaluation.intervals import Interval

Verdict = Literal["promote", "stop", "pause", "roll_back"]


Answer = Literal["promote", "stop", "roll_back"]


class Rule(Closed):
    """One rule that was looked at: what it measured, against what, and whether it holds."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float
    broken: bool


class Decision(Closed):
    """``round_NNN/gate/decision.json``.

    ``best_round`` is the round whose policy is the best so far, and what a roll-back goes back to; ``reasons`` are
    sentences for people; ``measures`` are plain numbers, each with ``_ci`` beside it where there is an interval.
    """

    decision: Verdict
    reasons: tuple[str, ...]
    best_round: int = Field(ge=0)
    rules: tuple[Rule, ...] = ()
    measures: dict[str, JsonValue] = Field(default_factory=dict)


class Approval(Closed):
    """``approvals/round_NNN.json``: what a person answered to a pause, or to a stop. ``time`` is UTC, ISO 8601."""

    decision: Answer
    by: str = Field("", max_length=200)
    reason: str = Field("", max_length=2000)
    time: str = ""


Measures = Mapping[str, Interval | None]


@dataclass(frozen=True)
class Standing:
    """What earlier gates, and people's answers to them, leave to this round's.

    Attributes:
        round: the round that is judged.
        best: the best round so far.
        base: the round that rules measure from: the start, or the newest that a person promoted.
        prompts: held-out prompts that were answered.
        overtaken: the next round had begun before this one had a gate.
    """

    round: int
    best: int
    base: int
    prompts: int
    overtaken: bool = False


@dataclass(frozen=True)
class _Limit:
    """One limit: ``measure`` must not surely be above (or below) ``limit``; None: no rule."""

    name: str
    measure: str
    limit: float | None
    above: bool
    said: str
    share: bool = False
    applies: bool = True


def decide(settings: Gate, measures: Measures, standing: Standing) -> Decision:
    """What becomes of a round.

    Broken rules come first, then a round that is surely worse than the best one, then rounds without gain.

    Args:
        measures: by name, as ``flows/stages/gate.py`` takes them; those that are None judge nothing.
    """
    round_, best = standing.round, standing.best
    if standing.prompts < settings.min_prompts:
        few = f"{standing.prompts} held-out prompts are too few to judge by (gate.min_prompts {settings.min_prompts})"
        return Decision(decision="promote", reasons=(few,), best_round=round_)
    limits = [limit for limit in _limits(settings, measures, standing) if limit.limit is not None and limit.applies]
    rules = tuple(rule for limit in limits if (rule := _judged(limit, measures)) is not None)
    sayings = {limit.name: limit for limit in limits}
    broken = [_sentence(sayings[rule.name], rule) for rule in rules if rule.broken]
    wins, pooled = measures.get("win_rate_vs_best"), measures.get("win_rate_since_best")
    second = measures.get("second_win_rate_vs_best")
    better = wins is not None and wins.low > 0.5 and not (second is not None and second.high < 0.5)
    verdict: Verdict = "promote"
    if broken:
        verdict, reasons = settings.alarm, broken
    elif _surely_below(pooled, None if settings.patience is None else 0.5 + settings.min_gain):
        verdict = "stop"
        reasons = [
            f"no gain in {settings.patience} rounds: {_wins(pooled)} over round {best}, the best so far, is surely "
            f"below {0.5 + settings.min_gain:.0%}"
        ]
    elif _surely_below(wins, settings.roll_back_below):
        verdict = "roll_back"
        reasons = [f"{_wins(wins)} over round {best}, the best so far, is surely below {settings.roll_back_below:.0%}"]
    elif wins is None:
        reasons = ["no rule is broken; nothing tells whether the round is better than the ones before"]
    elif better:
        reasons = [f"no rule is broken, and the round is the best so far: {_wins(wins)} over round {best}"]
    else:
        reasons = [f"no rule is broken; round {best} is still the best: {_wins(wins)} over it"]
    if standing.overtaken and verdict != "promote":
        reasons = [*reasons, f"{verdict}, but round {round_ + 1} had begun before this round had a gate"]
        verdict = "promote"
    newest = wins is None and not broken
    return Decision(
        decision=verdict,
        reasons=tuple(reasons),
        best_round=round_ if newest or (better and not broken) else best,
        rules=rules,
    )


def _limits(settings: Gate, measures: Measures, standing: Standing) -> list[_Limit]:
    """All rules, in the order in which they are told."""
    base, best = f"round {standing.base}", f"round {standing.best}"
    wins, seen = measures.get("win_rate_vs_base"), measures.get("second_win_rate_vs_base")
    longer = measures.get("length_ratio")
    rises = wins is not None and wins.low > 0.5
    rises_over_best = _surely_above(measures.get("win_rate_vs_best"), 0.5)
    unseen = seen is None or seen.low <= 0.5
    grown = longer is not None and longer.low > settings.min_longer
    more = f" more than that of {base}" if standing.base else ""
    share, gain = settings.max_length_share, f"the training labeller sees a gain ({_wins(wins)} over {base})"
    return [
        _Limit("kl", "kl", settings.max_kl, True, "KL to the start is {} nats a token" + more),
        _Limit("length", "length_ratio", settings.max_length, True, f"responses are {{}} times as long as {base}'s"),
        _Limit(
            "short", "finished_length_ratio", settings.min_length, False,
            f"responses that end by themselves are {{}} times as long as {base}'s",
        ),
        _Limit(
            "length_share", "length_share", share, True,
            f"{{}} of the gain in reward over {base} goes with longer responses", True, grown and unseen,
        ),
        _Limit(
            "repetition", "repetition_rise", settings.max_repetition, True,
            f"the share of responses that repeat themselves rose by {{}} over {base}", True,
        ),
        _Limit(
            "unfinished", "stop_fall", settings.max_unfinished, True,
            f"the share of responses that end by themselves fell by {{}} from {base}", True,
        ),
        _Limit(
            "distinct", "distinct_ratio", settings.min_distinct, False,
            f"responses hold {{}} times as many different pairs of words as {base}'s, in equally many words",
        ),
        _Limit(
            "second", "second_win_rate_vs_base", settings.second_loss, False,
            f"{gain}, but by the second labeller the win rate is {{}}", True, rises,
        ),
        _Limit(
            "second_best", "second_win_rate_vs_best", settings.second_loss, False,
            f"the training labeller prefers the round to {best}, but by the second labeller the win rate is {{}}",
            True, rises_over_best and standing.best != standing.base,
        ),
        _Limit(
            "gap", "gap", settings.max_gap, True,
            f"{gain}, the second labeller none ({_wins(seen)}): a gap of {{}}", True, rises and unseen,
        ),
    ]  # fmt: skip


def _judged(limit: _Limit, measures: Measures) -> Rule | None:
    found = measures.get(limit.measure)
    if found is None or limit.limit is None:
        return None
    broken = found.low > limit.limit if limit.above else found.high < limit.limit
    return Rule(
        name=limit.name, value=found.mean, low=found.low, high=found.high, limit=limit.limit, broken=bool(broken)
    )


def _sentence(limit: _Limit, rule: Rule) -> str:
    form = "{:.1%}" if limit.share else "{:.2f}"
    value, bound = form.format(rule.value), form.format(rule.limit)
    spread = f"95 % interval {form.format(rule.low)} to {form.format(rule.high)}, " if rule.low != rule.high else ""
    return f"{limit.said.format(value)} ({spread}limit {bound})"


def _wins(wins: Interval | None) -> str:
    return "no win rate" if wins is None else f"win rate {wins.mean:.1%} [{wins.low:.1%}, {wins.high:.1%}]"


def _surely_below(found: Interval | None, limit: float | None) -> bool:
    return found is not None and limit is not None and found.high < limit


def _surely_above(found: Interval | None, limit: float) -> bool:
    return found is not None and found.low > limit
