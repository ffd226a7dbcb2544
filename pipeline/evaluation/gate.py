"""The gate's rules: from a round's measurements to a verdict. Torch-free.

A rule is broken only when the whole interval lies beyond its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from pipeline.config import Gate
from pipeline.config.base import Closed
from pipeline.evaluation.intervals import Interval

# Of responses that end by themselves, tokens of this round over those of the one that it started from, and of that one
# over the base's. They fell if this is at most the factor, and surely below 1: lengths vary, so that a factor of 0.8 is
# seldom surely below 0.9.
FALLS = ("finished_length_vs_previous", "previous_finished_length_ratio")
FALLEN = 0.9

Verdict = Literal["promote", "stop", "pause", "roll_back"]


HumanDecision = Literal["promote", "stop", "roll_back"]


class Rule(Closed):
    """One rule that was checked: its measured value, its limit, and whether it is broken."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float
    broken: bool


class Decision(Closed):
    """``round_NNN/gate/decision.json``.

    ``best_round`` is the round with the best policy so far, and the target of a roll-back; ``reasons`` are sentences
    for people; ``measures`` are plain numbers, each with its interval under the same name plus ``_ci`` if it has one.
    """

    decision: Verdict
    reasons: tuple[str, ...]
    best_round: int = Field(ge=0)
    rules: tuple[Rule, ...] = ()
    measures: dict[str, JsonValue] = Field(default_factory=dict)


class Approval(Closed):
    """``approvals/round_NNN.json``: a person's answer to a pause or a stop. ``time`` is UTC, ISO 8601."""

    decision: HumanDecision
    by: str = Field("", max_length=200)
    reason: str = Field("", max_length=2000)
    time: str = ""


Measures = Mapping[str, Interval | None]


@dataclass(frozen=True)
class Standing:
    """State from earlier gates, and people's answers to them, for this round's gate.

    Attributes:
        round: the round to judge.
        best: the best round so far.
        base: the round that rules measure from: the start, or the newest that a person promoted.
        prompts: number of held-out prompts that were answered.
        overtaken: the next round had begun before this one had a gate.
        alarms: those that still stood when the round's training ended, in words.
        unit: what KL is counted in; images have dimensions.
        ranks: without a labeller, "win rates" are ½ + half the change in held-out pairs ranked as labelled.
    """

    round: int
    best: int
    base: int
    prompts: int
    overtaken: bool = False
    alarms: tuple[str, ...] = ()
    ranks: bool = False
    unit: Literal["token", "dimension"] = "token"


# alarms: some still stood when training ended; few_prompts: too few to judge by; broken_rules: some rules are broken;
# no_gain: surely no gain in ``patience`` rounds; worse: surely worse than the best round; reward_fell: its mean reward
# is surely lower than the best round's; unmeasured: no comparison with other rounds; better: surely than the best.
Why = Literal[
    "alarms", "few_prompts", "broken_rules", "no_gain", "worse", "reward_fell", "unmeasured", "better", "not_better"
]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a round, and its reason.

    Attributes:
        best_round: the best round from here on.
        rules: the rules that were checked.
        too_late: the verdict that was not carried out, since the next round had begun.
    """

    verdict: Verdict
    why: Why
    best_round: int
    rules: tuple[Rule, ...] = ()
    too_late: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """One limit: ``measure`` must not be surely above (or below) ``limit``; None: no rule."""

    name: str
    measure: str
    limit: float | None
    above: bool
    applies: bool = True


def decide(settings: Gate, measures: Measures, standing: Standing) -> Judgement:
    """Judge a round.

    Alarms of the training come first, then broken rules, then rounds without gain, then a round that is surely worse
    than the best one: by its win rate, or by its mean reward.

    Args:
        measures: by name, as ``flows/stages/gate.py`` measures them; those that are None are not judged.
    """
    few = standing.prompts < settings.min_prompts
    if few and not standing.alarms:
        return Judgement("promote", "few_prompts", standing.round)
    limits = [limit for limit in _limits(settings, measures, standing) if limit.applies and not few]
    rules = tuple(rule for limit in limits if (rule := _judged(limit, measures)) is not None)
    broken = any(rule.broken for rule in rules)
    wins = measures.get("win_rate_vs_best")
    fell = _surely_below(measures.get("reward_change_vs_best"), _lowest_change(settings))
    better = _surely_above(wins, 0.5) and not fell and not _second_sees_less(measures)
    verdict: Verdict = "promote"
    why: Why = "better" if better else "unmeasured" if wins is None else "not_better"
    if standing.alarms:
        verdict, why = settings.alarm, "alarms"
    elif broken:
        verdict, why = settings.alarm, "broken_rules"
    elif _surely_below(measures.get("win_rate_since_best"), least_gain(settings)):
        verdict, why = "stop", "no_gain"
    elif _surely_below(wins, settings.roll_back_below):
        verdict, why = "roll_back", "worse"
    elif fell:
        verdict, why = "roll_back", "reward_fell"
    newest = not standing.alarms and not broken and (better or wins is None)
    best = standing.round if newest else standing.best
    if standing.overtaken and verdict != "promote":
        return Judgement("promote", why, best, rules, too_late=verdict)
    return Judgement(verdict, why, best, rules)


def _second_sees_less(measures: Measures) -> bool:
    """Whether the second labeller surely likes the round less than the best one, by wins or by mean reward."""
    less = _surely_below(measures.get("second_reward_change_vs_best"), 0.0)
    return less or _surely_below(measures.get("second_win_rate_vs_best"), 0.5)


def least_gain(settings: Gate) -> float | None:
    """Return the win rate over the best round that the last ``patience`` rounds must not surely miss; None: no rule."""
    return None if settings.patience is None else 0.5 + settings.min_gain


def _lowest_change(settings: Gate) -> float | None:
    """Return the change of the mean reward that a round must not surely miss; None: no rule."""
    return None if settings.max_reward_fall is None else 0.0 - settings.max_reward_fall


def _limits(settings: Gate, measures: Measures, standing: Standing) -> list[_Limit]:
    """Return all rules, in the order of the report."""
    seen, longer = measures.get("second_win_rate_vs_base"), measures.get("length_ratio")
    rises = _surely_above(measures.get("win_rate_vs_base"), 0.5)
    rises_over_best = _surely_above(measures.get("win_rate_vs_best"), 0.5)
    unseen = seen is None or seen.low <= 0.5
    grown = _surely_above(longer, settings.min_longer)
    apart = standing.best != standing.base
    return [
        _Limit(name="kl", measure="kl", limit=settings.max_kl, above=True),
        _Limit(name="length", measure="length_ratio", limit=settings.max_length, above=True),
        _Limit(name="short", measure="finished_length_ratio", limit=settings.min_length, above=False),
        _Limit(
            name="shrinking",
            measure="finished_length_ratio",
            limit=settings.min_length_falling,
            above=False,
            applies=all(_fell(measures.get(fall)) for fall in FALLS),
        ),
        _Limit(
            name="length_share",
            measure="length_share",
            limit=settings.max_length_share,
            above=True,
            applies=grown and unseen,
        ),
        _Limit(name="repetition", measure="repetition_rise", limit=settings.max_repetition, above=True),
        _Limit(name="unfinished", measure="stop_fall", limit=settings.max_unfinished, above=True),
        _Limit(name="distinct", measure="distinct_ratio", limit=settings.min_distinct, above=False),
        _Limit(
            name="second",
            measure="second_win_rate_vs_base",
            limit=settings.second_loss,
            above=False,
            applies=rises,
        ),
        _Limit(
            name="second_best",
            measure="second_win_rate_vs_best",
            limit=settings.second_loss,
            above=False,
            applies=rises_over_best and apart,
        ),
        _Limit(name="gap", measure="gap", limit=settings.max_gap, above=True, applies=rises and unseen),
        _Limit(
            name="reward",
            measure="reward_change_vs_best",
            limit=_lowest_change(settings),
            above=False,
            applies=settings.on_reward_fall == "alarm",
        ),
        *(
            _Limit(name=f"suite_{name}", measure=f"suite_{name}_change", limit=rule.min_change, above=False)
            for name, rule in settings.suites.items()
        ),
    ]


def _fell(ratio: Interval | None) -> bool:
    return ratio is not None and ratio.mean <= FALLEN and _surely_below(ratio, 1.0)


def _judged(limit: _Limit, measures: Measures) -> Rule | None:
    found = measures.get(limit.measure)
    if found is None or limit.limit is None:
        return None
    broken = found.low > limit.limit if limit.above else found.high < limit.limit
    return Rule(
        name=limit.name, value=found.mean, low=found.low, high=found.high, limit=limit.limit, broken=bool(broken)
    )


def _surely_below(found: Interval | None, limit: float | None) -> bool:
    return found is not None and limit is not None and found.high < limit


def _surely_above(found: Interval | None, limit: float) -> bool:
    return found is not None and found.low > limit
