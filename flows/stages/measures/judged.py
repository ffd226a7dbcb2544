"""Suites that labellers judge: answers against a baseline's, and the labellers themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from flows.run_folder.inputs import refits
from flows.run_folder.specs.suite_keys import suite_place
from flows.stages.context import Context, policy_rendering
from flows.stages.labels.discriminator import member_margins
from flows.stages.measures.suite_samples import leaks, trained_plain
from pipeline.config.evaluation.suites import AlpacaEvalSuite, ArenaHardSuite, RewardBenchSuite, Suite, suite_name
from pipeline.data.files.suite_rows import arena_questions, baseline_answers, cell_text, row_categories, suite_rows
from pipeline.errors import UserError
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.suites.arena import measure_battles
from pipeline.evaluation.suites.length_controlled import FOLDS, Gamed, length_controlled
from pipeline.evaluation.suites.result import Measure, SuiteResult, told_apart
from pipeline.evaluation.suites.reward_bench import reward_bench_accuracies
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.questions import Question, ask
from reward_models.build import build_labeller
from reward_models.judge.judge import Judge


def given_response(text: str) -> Response:
    """A response that comes from a file."""
    return Response(text, (), (), "stop")


def measure_alpaca(
    context: Context, suite: AlpacaEvalSuite, answers: Sequence[Group], accounts: Accounts
) -> SuiteResult:
    """Compare answers with the baseline's: the win rate, and the length-controlled one. Raises ``UserError``."""
    rows = suite_rows(suite, suite.file)
    theirs = [cell_text(row.values, "output", row.place) for row in rows]
    ours = [group.responses[0].text for group in answers]
    duels = [
        Group(group.prompt, (), (group.responses[0], given_response(text)))
        for group, text in zip(answers, theirs, strict=True)
    ]
    place = f"{suite_place(suite, context.config)}.judge"
    labeller = build_labeller(suite.judge, accounts, place, policy_rendering(context.config))
    wins = [labels.preference(0, 1) for labels in labeller.label(duels)]
    known = [win for win in wins if win is not None]
    _require_labels(suite, len(known), len(wins), context)
    metrics: dict[str, Measure] = {"win_rate": rate_interval(known)}
    told = [(part, win) for part, win in zip(row_categories(suite), wins, strict=False) if win is not None]
    metrics |= told_apart("win_rate", [part for part, _ in told], [win for _, win in told], rate_interval)
    facts: dict[str, JsonValue] = {
        "baseline": str(rows[0].values.get("generator", "")),
        "missing": len(wins) - len(known),
        "length": sum(map(len, ours)) / len(ours),
        "baseline_length": sum(map(len, theirs)) / len(theirs),
    }
    lengths = [*map(len, theirs)], [*map(len, ours)]
    gamed = None if suite.difficulty is None else _gamed(suite, Path(suite.difficulty))
    found = length_controlled(wins, *lengths, gamed=gamed, seed=context.config.evaluation.seed)
    metrics["lc_win_rate"] = found.rate
    metrics["lc_standard_error"] = found.standard_error
    return SuiteResult("alpaca_eval", "lc_win_rate", metrics, facts=facts)


def _require_labels(suite: Suite, known: int, asked: int, context: Context) -> None:
    """Stop where too few questions have labels: a mean over the rest would be of another suite."""
    least = context.config.labelling.min_yield
    if known < max(least * asked, FOLDS):
        raise UserError(
            f"evaluation.suites: {suite_name(suite)}: {known} of {asked} questions got labels, below "
            f"labelling.min_yield ({least:g}) or {FOLDS}; what was labelled is kept, and the same command asks for the "
            "rest (the judge's budget may be used up)"
        )


def _gamed(suite: AlpacaEvalSuite, file: Path) -> Gamed:
    """Read the published file of difficulties. Raises ``UserError`` that names file and row."""
    rows = suite_rows(suite, str(file), limited=False)
    names = ("preference", "std_delta_len", "instruction_difficulty", "index")
    table = np.array([[_number(row.values, name, row.place) for name in names] for row in rows])
    by_index = dict(zip(table[:, 3].astype(int).tolist(), table[:, 2].tolist(), strict=True))
    missing = [number for number in range(len(by_index)) if number not in by_index]
    if missing:
        raise UserError(f"{file}: index: {missing[0]} is missing; they count the instructions from 0")
    # A preference that could not be made is left out.
    return Gamed(table[:, 0], table[:, 1], table[:, 2], np.array([by_index[n] for n in range(len(by_index))]))


def _number(values: dict[str, Any], column: str, place: str) -> float:
    value = values.get(column)
    if value in (None, "") and column == "preference":
        return float("nan")
    try:
        return float(str(value))
    except ValueError:
        raise UserError(f"{place}: {column}: must be a number, not {str(value)[:80]!r}") from None


def measure_arena(context: Context, suite: ArenaHardSuite, answers: Sequence[Group], accounts: Accounts) -> SuiteResult:
    """Ask for verdicts in both orders, and count battles. Raises ``UserError``."""
    baseline = baseline_answers(suite)
    keys = [*arena_questions(suite)]
    judge = Judge(suite.judge, accounts, f"{suite_place(suite, context.config)}.judge")
    asked: list[Question] = []
    for key, group in zip(keys, answers, strict=True):
        ours, theirs = group.responses[0], given_response(baseline[key])
        asked += [Question(group.prompt, (theirs, ours)), Question(group.prompt, (ours, theirs))]
    given = ask(asked, judge, accounts)
    verdicts: dict[str, tuple[float, float]] = {}
    for number, key in enumerate(keys):
        first, second = given[2 * number].value, given[2 * number + 1].value
        if first is not None and second is not None:
            verdicts[key] = (1 - first, second)
    _require_labels(suite, len(verdicts), len(keys), context)
    styles = {key: (group.responses[0].text, baseline[key]) for key, group in zip(keys, answers, strict=True)}
    # Without any categories there are none of these questions either.
    categories = dict(zip(keys, row_categories(suite), strict=False))
    return measure_battles(verdicts, styles, suite.weight, context.config.evaluation.seed, categories)


def rate_labellers(context: Context, round_: int, suite: RewardBenchSuite, accounts: Accounts) -> SuiteResult:
    """Rank chosen over rejected by the labeller, and by the round's discriminator. Raises ``UserError``."""
    rows = suite_rows(suite, suite.file)
    pairs = [
        Group(
            Prompt((Message("user", cell_text(row.values, "prompt", row.place)),)),
            (),
            tuple(given_response(cell_text(row.values, name, row.place)) for name in ("chosen", "rejected")),
        )
        for row in rows
    ]
    leaked = leaks(suite, [pair.prompt for pair in pairs], trained_plain(context, round_))
    subsets = [str(row.values.get("subset") or "all") for row in rows]
    place = f"{suite_place(suite, context.config)}.judge" if suite.judge is not None else "scorer"
    settings = suite.judge or context.config.scorer
    assert settings is not None, "the config is checked"
    labeller = build_labeller(settings, accounts, place, policy_rendering(context.config))
    labels = [given.preference(0, 1) for given in labeller.label(pairs)]
    _require_labels(suite, sum(one is not None for one in labels), len(labels), context)
    metrics = reward_bench_accuracies(subsets, [None if one is None else float(one > 0.5) for one in labels])
    margins = None
    if suite.judge is None and refits(context.config, round_):
        margins = member_margins(context, round_, pairs)
    if margins is not None:
        found = reward_bench_accuracies(subsets, [float(sum(one) > 0) for one in margins])
        metrics |= {f"discriminator_{name}": value for name, value in found.items()}
    return SuiteResult("reward_bench", "score", metrics, facts={"leaked": len(leaked)})
