"""The result of a suite: its metrics, the one that rules compare, and its value for each row. Torch-free."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from pipeline.evaluation.breakdown import largest_parts
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.storage.atomic import write_json

Measure = Interval | float
T = TypeVar("T")


@dataclass(frozen=True)
class SuiteResult:
    """One measurement of a suite.

    Attributes:
        kind: of the suite.
        main: the metric that tables show and the gate's rule compares.
        metrics: by name; plain numbers have no interval.
        items: the main metric by row, for comparisons row by row; empty if it is no mean over rows.
        falls: whether lower values of the main metric are better.
        facts: counts and costs.
    """

    kind: str
    main: str
    metrics: Mapping[str, Measure]
    items: Mapping[str, float] = field(default_factory=dict)
    falls: bool = False
    facts: Mapping[str, JsonValue] = field(default_factory=dict)

    def flat(self, name: str) -> dict[str, JsonValue]:
        """The metrics as ``suite_NAME_METRIC``, and the main one as ``suite_NAME``, each with its ``_ci``."""
        found: dict[str, JsonValue] = {}
        for metric, value in [("", self.metrics[self.main]), *self.metrics.items()]:
            key = f"suite_{name}_{metric}".rstrip("_")
            found[key] = value.mean if isinstance(value, Interval) else value
            if isinstance(value, Interval):
                found[f"{key}_ci"] = [value.low, value.high]
        return found

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        plain = {
            name: [value.mean, value.low, value.high] if isinstance(value, Interval) else value
            for name, value in self.metrics.items()
        }
        write_json(
            file,
            {
                "kind": self.kind, "main": self.main, "falls": self.falls, "metrics": plain,
                "items": dict(self.items), "facts": dict(self.facts),
            },
        )  # fmt: skip

    @classmethod
    def read(cls, file: Path) -> "SuiteResult":
        """Read what ``write`` wrote."""
        plain = json.loads(file.read_text(encoding="utf-8"))
        metrics = {
            name: Interval(*value) if isinstance(value, list) else value for name, value in plain["metrics"].items()
        }
        return cls(plain["kind"], plain["main"], metrics, plain["items"], plain["falls"], plain["facts"])


def told_apart(
    metric: str, parts: Sequence[str], rows: Sequence[T], measure: Callable[[list[T]], Measure]
) -> dict[str, Measure]:
    """Return ``measure`` of the rows of each part, as ``METRIC_of_PART``; of the 50 largest, and none of one alone.

    ``parts``: of each row.
    """
    of: dict[str, list[T]] = {}
    for part, row in zip(parts, rows, strict=True):
        of.setdefault(part, []).append(row)
    if len(of) < 2:
        return {}
    largest = largest_parts(of)
    names = part_names(largest)
    return {f"{metric}_of_{names[name]}": measure(own) for name, own in largest.items()}


def part_names(parts: Iterable[str]) -> dict[str, str]:
    """Return each part's name as the end of a metric's: letters and digits, and different for different parts.

    >>> part_names(["hep-go", "hep go", "?", "a_ci"])
    {'hep-go': 'hep_go', 'hep go': 'hep_go_2', '?': 'other', 'a_ci': 'a_ci_part'}
    """
    names: dict[str, str] = {}
    for part in parts:
        name = "_".join(re.findall(r"[^\W_]+", part)) or "other"
        # That is how the key of an interval ends.
        name += "_part" if f"_{name}".endswith("_ci") else ""
        taken, number, plain = {*names.values()}, 1, name
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        names[part] = name
    return names


def suite_change(ours: SuiteResult, theirs: SuiteResult) -> Interval | None:
    """Return how much better ``ours`` is than ``theirs`` by the main metric; None if that is not known.

    Row by row where both have the same rows with values from 0 to 1. Else from both intervals, as if the two had been
    measured on rows of their own, which makes the interval too long rather than too short.
    """
    sign = -1.0 if ours.falls else 1.0
    shared = sorted(ours.items.keys() & theirs.items.keys())
    if shared and len(shared) == len(ours.items) == len(theirs.items):
        gains = [sign * (ours.items[key] - theirs.items[key]) for key in shared]
        if all(-1 <= gain <= 1 for gain in gains):
            return rate_interval(gains, -1.0, 1.0)
    mine, other = (result.metrics.get(ours.main) for result in (ours, theirs))
    if not isinstance(mine, Interval) or not isinstance(other, Interval):
        return None
    change = sign * (mine.mean - other.mean)
    if ours.falls:
        mine, other = other, mine
    below = math.hypot(mine.mean - mine.low, other.high - other.mean)
    above = math.hypot(mine.high - mine.mean, other.mean - other.low)
    return Interval(change, change - below, change + above)
