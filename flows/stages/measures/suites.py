"""suites: what the round's suites measure: metrics.json, and a file for each suite."""

import json
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.specs.suite_keys import SUITE_SAMPLES, SUITES
from flows.stages.context import Context, Outcome
from flows.stages.labels.shards import LabelProgress, open_accounts
from flows.stages.measures.judged import measure_alpaca, measure_arena, rate_labellers
from flows.stages.measures.suite_samples import LEAKED, SUITE_MEASURED
from pipeline.config import Suite
from pipeline.config.evaluation.suites import (
    AlpacaEvalSuite,
    ArenaHardSuite,
    IfevalSuite,
    LmEvalSuite,
    RewardBenchSuite,
    answers,
    due,
    suite_name,
)
from pipeline.data.files.suite_rows import instructions
from pipeline.errors import RunError
from pipeline.evaluation.suites.ifeval import measure_ifeval
from pipeline.evaluation.suites.result import SuiteResult
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups
from pipeline.types import Group
from reward_models.answers.accounts import Accounts, label_summary


def suites(context: Context, round_: int, folder: Path) -> Outcome:
    """Measure the suites of the round; labels that were paid for stay in the cache, whatever ends the stage."""
    metrics: dict[str, JsonValue] = {"round": round_}
    rows, named = 0, dict[str, JsonValue]()
    with open_accounts(context, round_, SUITES) as accounts:
        accounts.changed = LabelProgress(context, 1, accounts).tick
        for suite in due(context.config.evaluation.suites, round_):
            name = suite_name(suite)
            result = _measured(context, round_, suite, accounts)
            result.write(folder / f"{name}.json")
            metrics |= result.flat(name)
            leaked = _leaked(context, round_, suite, result)
            if leaked:
                metrics[f"suite_{name}_leaked"] = leaked
            named[name] = result.main
            rows += len(result.items) or 1
            context.report(len(named), len(context.config.evaluation.suites), name)
        labelling = label_summary([accounts.take()], accounts)
    metrics |= {"suites": named, **({"suite_labelling": labelling} if labelling else {})}
    write_json(folder / "metrics.json", metrics)
    return Outcome(rows, metrics)


def _measured(context: Context, round_: int, suite: Suite, accounts: Accounts) -> SuiteResult:
    match suite:
        case LmEvalSuite():
            return SuiteResult.read(_folder(context, round_, suite) / SUITE_MEASURED)
        case IfevalSuite():
            texts = [group.responses[0].text for group in _answers(context, round_, suite)]
            return measure_ifeval(instructions(suite), texts, f"evaluation.suites: {suite_name(suite)}")
        case AlpacaEvalSuite():
            return measure_alpaca(context, suite, _answers(context, round_, suite), accounts)
        case ArenaHardSuite():
            return measure_arena(context, suite, _answers(context, round_, suite), accounts)
        case RewardBenchSuite():
            return rate_labellers(context, round_, suite, accounts)


def _folder(context: Context, round_: int, suite: Suite) -> Path:
    return context.run.stage(round_, SUITE_SAMPLES).folder / suite_name(suite)


def _answers(context: Context, round_: int, suite: Suite) -> list[Group]:
    """The policy's answers, in the order of the file."""
    found = list(read_groups(_folder(context, round_, suite)))
    if not found:
        raise RunError(f"evaluation.suites: {suite_name(suite)}: no answers")
    return found


def _leaked(context: Context, round_: int, suite: Suite, result: SuiteResult) -> JsonValue:
    """How many of the suite's prompts are training prompts too."""
    if not answers(suite):
        return result.facts["leaked"]
    return len(json.loads((_folder(context, round_, suite) / LEAKED).read_text(encoding="utf-8")))
