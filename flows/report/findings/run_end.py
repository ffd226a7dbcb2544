"""How long the whole run will still take, from what its earlier rounds took. Torch-free."""

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from flows.report.progress import Whole
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.storage.manifest import Manifest
from pipeline.storage.run_folder import RunFolder

# Longer rounds ago say little: data, lengths and machines change.
_ROUNDS = 5


def seconds_at_work(stages: Iterable[Manifest]) -> float:
    """Seconds in which one of ``stages`` or more was at work: neither pauses of the run nor overlaps count."""
    spans = []
    for stage in stages:
        end = datetime.fromisoformat(stage.finished).timestamp()
        spans.append((end - stage.seconds, end))
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def seconds_left(
    rounds: Sequence[Sequence[Manifest]], present: Sequence[Manifest], later: int, elapsed: float, stage: float | None
) -> float | None:
    """Estimate the seconds to the end of a run: its remaining rounds take as long as the earlier ones on average.

    Args:
        rounds: the stages of each earlier round, complete ones alone.
        present: stages of the present round that are complete.
        later: rounds after the present one.
        elapsed: seconds since the present stage began.
        stage: seconds that the present stage still takes; None if unknown.

    Returns:
        None if no round is complete: what a round takes is not known then.
    """
    if not rounds:
        return None
    earlier = [one for stages in rounds for one in stages]
    before = seconds_at_work(earlier)
    a_round = before / len(rounds)
    done = seconds_at_work([*earlier, *present]) - before
    return max(a_round - done - elapsed, stage or 0.0) + later * a_round


def whole_run(run: RunFolder, config: RunConfig, round_: int, spoken: Callable[[float], str]) -> Whole:
    """Make the words on the whole run that go with the progress of a stage of ``round_`` that begins now.

    A run of one round gets none: its stages' own times are all that is known.
    """
    if config.rounds < 2:
        return lambda stage: ""
    complete = range(max(1, round_ - _ROUNDS), round_)
    rounds = [stages for number in complete if (stages := _stages(run, number))]
    present, begun = _stages(run, round_), time.monotonic()

    def words(stage: float | None) -> str:
        left = seconds_left(rounds, present, config.rounds - round_, time.monotonic() - begun, stage)
        return "whole run: known after round 1" if left is None else f"whole run: {spoken(left)} left"

    return words


def _stages(run: RunFolder, round_: int) -> list[Manifest]:
    try:
        found = [stage.manifest() for stage in run.stages() if stage.round == round_]
    except RunError:
        # A damaged stage is the business of those that read it.
        return []
    return [one for one in found if one is not None and one.finished]
