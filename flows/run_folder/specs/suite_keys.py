"""What the stages of suites are made from: their inputs, settings and files. Torch-free."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.growth import added_stages
from flows.run_folder.inputs import Place, refits
from flows.run_folder.key_parts import scorer_digests
from pipeline.config import RunConfig, Suite
from pipeline.config.evaluation.suites import (
    AlpacaEvalSuite,
    ArenaHardSuite,
    LmEvalSuite,
    RewardBenchSuite,
    answers,
    due,
    suite_judge,
    suite_name,
)
from pipeline.errors import UserError
from pipeline.storage.digests import digest
from pipeline.storage.run_folder import Stage

SUITE_SAMPLES, SUITES = "suite_samples", "suites"
# Settings that change no answer of the policy.
_OF_JUDGING = frozenset(("judge", "difficulty", "weight", "metric", "baseline", "category"))


def measures_suites(config: RunConfig, round_: int) -> bool:
    """Whether a suite is measured in the round."""
    return bool(due(config.evaluation.suites, round_))


def asks_suites(config: RunConfig, round_: int) -> bool:
    """Whether the policy answers a suite in the round."""
    return any(answers(suite) for suite in due(config.evaluation.suites, round_))


def of_suite_samples(place: Place) -> list[Stage]:
    """The policy that answers, and the training prompts, which suites must not ask."""
    return [place.data, place.stage("policy")]


def of_suites(place: Place) -> list[Stage]:
    """The answers; for suites that rate labellers, the round's discriminator."""
    asked = [place.stage(SUITE_SAMPLES)] if asks_suites(place.config, place.round) else []
    rated = [place.stage("discriminator")] if _rates_own(place) and refits(place.config, place.round) else []
    return [place.data, *asked, *rated]


def opened_by_suites(place: Place) -> list[Stage]:
    """Training prompts that were added."""
    return added_stages(place.run, place.round)


def asked_facts(place: Place) -> dict[str, JsonValue]:
    """Settings and files that decide the policy's answers."""
    asked: dict[str, JsonValue] = {}
    for suite in due(place.config.evaluation.suites, place.round):
        if answers(suite):
            plain = {name: value for name, value in suite.identity().items() if name not in _OF_JUDGING}
            asked[suite_name(suite)] = {**plain, "files": _asked_files(suite)}
    return {"evaluation.suites": asked}


def measured_facts(place: Place) -> dict[str, JsonValue]:
    """Settings and files that decide the measures."""
    measured: dict[str, JsonValue] = {}
    for suite in due(place.config.evaluation.suites, place.round):
        files = {
            **_asked_files(suite),
            **_further_files(suite),
            **dict(_judge_files(suite, suite_place(suite, place.config))),
        }
        measured[suite_name(suite)] = {**suite.identity(), "files": files}
    scorer = place.config.scorer
    rated = (
        {} if scorer is None or not _rates_own(place) else {"rated": scorer.identity(), **dict(scorer_digests(scorer))}
    )
    return {"evaluation.suites": measured, **rated}


def suite_place(suite: Suite, config: RunConfig) -> str:
    """The suite's position in the config."""
    return f"evaluation.suites.{config.evaluation.suites.index(suite)}"


def _rates_own(place: Place) -> bool:
    suites = due(place.config.evaluation.suites, place.round)
    return any(isinstance(suite, RewardBenchSuite) and suite.judge is None for suite in suites)


def _asked_files(suite: Suite) -> dict[str, JsonValue]:
    if not isinstance(suite, LmEvalSuite):
        return {"file": _digest(suite.file, f"{suite_name(suite)}: file")}
    return {} if suite.include is None else {"include": digest(task_files(Path(suite.include)))}


def task_files(folder: Path) -> list[Path]:
    """The files of a folder of tasks. Raises ``UserError`` if it holds none."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    if not files:
        raise UserError(f"evaluation.suites: include: {folder}: no folder with tasks")
    return files


def _further_files(suite: Suite) -> dict[str, JsonValue]:
    match suite:
        case AlpacaEvalSuite() if suite.difficulty is not None:
            return {"difficulty": _digest(suite.difficulty, f"{suite_name(suite)}: difficulty")}
        case ArenaHardSuite():
            return {"baseline": _digest(suite.baseline, f"{suite_name(suite)}: baseline")}
    return {}


def _judge_files(suite: Suite, place: str) -> Iterator[tuple[str, JsonValue]]:
    judge = suite_judge(suite)
    if judge is not None:
        yield from scorer_digests(judge, f"{place}.judge")


def _digest(path: str, field: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"evaluation.suites: {field}: {path}: no such file")
    return digest([Path(path)])
