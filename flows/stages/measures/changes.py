"""How suites changed from the round that the gate's rules compare with."""

from flows.run_folder.specs.suite_keys import SUITES
from flows.stages.context import Context
from pipeline.config import Gate
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.suites.result import SuiteResult, suite_change


def suite_changes(context: Context, settings: Gate, round_: int, base: int) -> dict[str, Interval | None]:
    """For each suite with a rule that the round measured, its change from ``base``, as ``suite_NAME_change``.

    Where ``base`` did not measure it, the newest round before it that did takes its place.
    """
    found: dict[str, Interval | None] = {}
    for name in settings.suites:
        ours = _result(context, round_, name)
        earlier = (_result(context, number, name) for number in range(base, -1, -1))
        theirs = next((result for result in earlier if result is not None), None)
        if ours is not None and theirs is not None:
            found[f"suite_{name}_change"] = suite_change(ours, theirs)
    return found


def _result(context: Context, round_: int, name: str) -> SuiteResult | None:
    file = context.run.stage(round_, SUITES).folder / f"{name}.json"
    return SuiteResult.read(file) if file.is_file() else None
