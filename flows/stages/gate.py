"""gate: judges a round on held-out prompts by up to two labellers, and decides what follows; writes decision.json."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from flows.report.findings.gate_reasons import gate_reasons
from flows.run_folder.ancestry import base_before, best_before, parent
from flows.run_folder.approvals import write_decision
from flows.stages.context import Context, Outcome, policy_rendering
from flows.stages.labels.shards import Shard, label_shards, open_accounts, shard_tallies
from flows.stages.measures.changes import suite_changes
from flows.stages.measures.held_out import HELD_OUT_MARGINS
from pipeline.config import Gate, ScorerSettings, compares
from pipeline.evaluation.gate import FALLS, Decision, Measures, Standing, decide
from pipeline.evaluation.gate_measures import Measuring, by_prompt, finished, longer, repeating, tokens
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import pair_accuracy, wins_by_score
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import standing_alarms
from pipeline.types import Group
from reward_models.answers.accounts import Accounts, label_summary
from reward_models.build import build_labeller
from reward_models.labeller import Labeller, wins_by_comparison

_WINS = "wins_over_best.json"
Groups = list[Group]
Wins = dict[str, float]


def gate(context: Context, round_: int, folder: Path) -> Outcome:
    """Measure the round against the start, its parent, the best round and the rules' base; decide."""
    settings = context.config.gate
    assert settings is not None, "the stage runs only if there is a gate"
    with open_accounts(context, round_, "gate") as accounts:
        labelling = _label(context, round_, folder, settings, accounts)
        views = _views(context, round_, folder, settings, accounts)
        standing = _standing(context, round_, len(views[0].groups(round_)))
        wins = _wins_over_best(context, views, standing)
        write_json(folder / _WINS, {"against": standing.best, "wins": wins})
        measures = _measures(context, views, standing, wins)
        measures["win_rate_since_best"] = _since_best(context, settings, standing, wins)
        measures |= suite_changes(context, settings, round_, standing.base)
        labelling |= _asked(folder, accounts)
    judgement = decide(settings, measures, standing)
    told = Decision(
        decision=judgement.verdict,
        reasons=gate_reasons(judgement, settings, measures, standing),
        best_round=judgement.best_round,
        rules=judgement.rules,
        measures=_plain(context, standing, measures),
    )
    write_decision(folder, told)
    facts: dict[str, JsonValue] = {"decision": told.decision, "best_round": told.best_round, **labelling}
    return Outcome(standing.prompts, facts)


class _View:
    """The rounds' sampled responses with one labeller's judgements."""

    def __init__(self, prefix: str, groups: Callable[[int], Groups], labeller: Labeller | None, labelled: bool) -> None:
        """``labeller`` is asked for comparisons; if it is None, ``groups`` have scores if ``labelled``."""
        self.prefix, self.groups, self.labelled = prefix, cache(groups), labelled
        self._labeller = labeller

    def scored(self, round_: int) -> Groups:
        """The round's responses with this labeller's scores; none if it only compares: other scores are not its own."""
        return [] if self._labeller is not None else self.groups(round_)

    def wins(self, round_: int, other: int) -> Wins:
        """For each prompt, the win rate of ``round_`` over ``other``; empty without labels."""
        if not self.labelled:
            return {}
        if self._labeller is not None:
            return wins_by_comparison(self.groups(round_), self.groups(other), self._labeller)
        return wins_by_score(self.groups(round_), self.groups(other))


def _views(context: Context, round_: int, folder: Path, settings: Gate, accounts: Accounts) -> list[_View]:
    """The training labeller's view, and the second labeller's if there is one."""
    run = context.run

    def evaluated(number: int) -> Groups:
        return list(read_groups(run.stage(number, "evaluation").folder / "sampled"))

    def seconded(number: int) -> Groups:
        # The first gate also labels the start's responses.
        place = (
            folder if number == round_ or (round_ == 1 and number == 0) else run.stage(max(number, 1), "gate").folder
        )
        return list(read_groups(place / ("second" if number else "second_start")))

    training = context.config.scorer
    views = [_View("", evaluated, _comparing(training, accounts, "scorer"), training is not None)]
    if settings.second is not None:
        comparing = _comparing(settings.second, accounts, "gate.second")
        views.append(_View("second_", evaluated if comparing is not None else seconded, comparing, True))
    return views


def _comparing(settings: ScorerSettings | None, accounts: Accounts, field: str) -> Labeller | None:
    """The labeller, if it only compares and gives no scores."""
    return None if settings is None or not compares(settings) else build_labeller(settings, accounts, field)


def _label(context: Context, round_: int, folder: Path, settings: Gate, accounts: Accounts) -> dict[str, JsonValue]:
    """Have the second labeller score the round's responses, and in round 1 the start's."""
    if settings.second is None or compares(settings.second):
        return {}
    labeller = build_labeller(settings.second, accounts, "gate.second", policy_rendering(context.config))
    costs: dict[str, JsonValue] = {}
    for number, name in ((0, "second_start"), (round_, "second")) if round_ == 1 else ((round_, "second"),):
        groups = list(read_groups(context.run.stage(number, "evaluation").folder / "sampled"))
        (folder / name).mkdir(exist_ok=True)
        shard = Shard("shard_00000.parquet", partial(iter, groups), len(groups))
        costs[name] = label_shards(context, folder / name, [shard], labeller, accounts)
    return costs


def _asked(folder: Path, accounts: Accounts) -> dict[str, JsonValue]:
    """Sum up what this stage asked labellers, comparisons too, and what it cost."""
    shards = [tally for name in ("second_start", "second") for tally in shard_tallies(folder / name)]
    summary = label_summary([*shards, accounts.take()], accounts)
    return {"labelling": summary} if summary else {}


def _standing(context: Context, round_: int, prompts: int) -> Standing:
    """The results of earlier rounds."""
    run = context.run
    following = run.stage(round_ + 1, "gate").folder.parent
    alarms = standing_alarms(run.stage(round_, "policy").folder)
    return Standing(
        round=round_,
        best=best_before(run, round_),
        base=base_before(run, round_),
        prompts=prompts,
        overtaken=any(following.glob("*/manifest.json")),
        alarms=tuple(alarm_line(alarm, context.config.loss.preset) for alarm in alarms),
        ranks=context.config.scorer is None,
        unit="dimension" if _images(context) else "token",
    )


def _wins_over_best(context: Context, views: list[_View], standing: Standing) -> Wins:
    """Win rates by the training labeller; without one, ½ + half the change in held-out pairs ranked correctly."""
    if views[0].labelled:
        return views[0].wins(standing.round, standing.best)
    ours, theirs = (_ranked(context, number) for number in (standing.round, standing.best))
    return {key: 0.5 + (ours[key] - theirs[key]) / 2 for key in ours if key in theirs}


def _ranked(context: Context, round_: int) -> dict[str, float]:
    file = context.run.stage(round_, "evaluation").folder / HELD_OUT_MARGINS
    if not file.is_file():
        return {}
    margins: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return dict(zip(margins, pair_accuracy(margins.values()), strict=True))


def _since_best(context: Context, settings: Gate, standing: Standing, wins: Wins) -> Interval | None:
    """Pooled win rate of the last ``patience`` rounds over the best round; None if the best is more recent."""
    if settings.patience is None:
        return None
    gathered = [wins]
    for number in range(standing.round - 1, standing.round - settings.patience, -1):
        file = context.run.stage(number, "gate").folder / _WINS
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if kept.get("against") != standing.best or number <= standing.best:
            return None
        gathered.append(kept["wins"])
    shared = {key for key in wins if all(key in some for some in gathered)}
    return _measuring(context).rate(
        {key: sum(some[key] for some in gathered) / len(gathered) for key in sorted(shared)}
    )


def _measuring(context: Context) -> Measuring:
    return Measuring(context.config.evaluation.bootstrap, context.config.evaluation.seed)


def _measures(context: Context, views: list[_View], standing: Standing, wins: Wins) -> dict[str, Interval | None]:
    round_, base, measuring = standing.round, standing.base, _measuring(context)
    rounds = {"start": 0, "previous": parent(context.run, context.config, round_), "base": base}
    found: dict[str, Interval | None] = {"kl": _kl(context, round_, base), "win_rate_vs_best": measuring.rate(wins)}
    seen: dict[str, Wins] = {}
    for view in views:
        against = {number: view.wins(round_, number) for number in {*rounds.values(), standing.best}}
        for name, number in rounds.items():
            found[f"{view.prefix}win_rate_vs_{name}"] = measuring.rate(against[number])
            if not _images(context):
                apart = longer(view.groups(round_), view.groups(number))
                found[f"{view.prefix}lc_win_rate_vs_{name}"] = measuring.length_controlled(against[number], apart)
        if view.prefix:
            found[f"{view.prefix}win_rate_vs_best"] = measuring.rate(against[standing.best])
        ours, best, start = (view.scored(number) for number in (round_, standing.best, 0))
        found[f"{view.prefix}reward_change_vs_best"] = measuring.reward_change(ours, best)
        found[f"{view.prefix}reward_gain"] = measuring.gain(ours, start)
        seen[view.prefix] = against[base]
    if "second_" in seen:
        found["gap"] = measuring.difference(seen[""], seen["second_"])
    if _images(context):
        return found
    ours, before, theirs = (views[0].groups(number) for number in (round_, rounds["previous"], base))
    falls = measuring.finished_length_ratio(ours, before), measuring.finished_length_ratio(before, theirs)
    return found | _of_texts(measuring, ours, theirs) | dict(zip(FALLS, falls, strict=True))


def _images(context: Context) -> bool:
    """Whether responses are images, which have no length and no words."""
    return context.config.modality == "image"


def _of_texts(measuring: Measuring, ours: Groups, theirs: Groups) -> dict[str, Interval | None]:
    """Properties of the responses compared with the base's, and how much the training labeller rewards length."""
    ended, repeated = ([by_prompt(groups, of) for groups in (ours, theirs)] for of in (finished, repeating))
    return {
        "length_ratio": measuring.ratio(by_prompt(ours, tokens), by_prompt(theirs, tokens)),
        "finished_length_ratio": measuring.finished_length_ratio(ours, theirs),
        "reward_length_slope": measuring.length_slope(ours, theirs),
        "length_share": measuring.length_share(ours, theirs),
        "repetition_rise": measuring.difference(*repeated),
        "stop_fall": measuring.difference(*reversed(ended)),
        "distinct_ratio": measuring.distinct_ratio(ours, theirs),
    }


def _kl(context: Context, round_: int, base: int) -> Interval | None:
    """KL to the start, minus the KL that the base round already had."""
    ours, theirs = (_evaluated(context, number) for number in (round_, base))
    if ours.get("kl_to_start") is None:
        return None
    value, had = float(ours["kl_to_start"]), float(theirs.get("kl_to_start") or 0.0)
    low, high = ours.get("kl_to_start_ci") or (value, value)
    return Interval(value - had, float(low) - had, float(high) - had)


def _evaluated(context: Context, round_: int) -> dict[str, Any]:
    file = context.run.stage(round_, "evaluation").folder / "metrics.json"
    metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return metrics


def _plain(context: Context, standing: Standing, measures: Measures) -> dict[str, JsonValue]:
    """Numbers for decision.json, and the rounds they belong to."""
    plain: dict[str, JsonValue] = {
        "base_round": standing.base,
        "previous_best_round": standing.best,
        "parent_round": parent(context.run, context.config, standing.round),
    }
    for name, found in measures.items():
        plain[name] = None if found is None else found.mean
        plain[f"{name}_ci"] = None if found is None else [found.low, found.high]
    return plain
