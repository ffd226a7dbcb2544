"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# done, total (0: not known yet), a short note such as the current loss
Report = Callable[[int, int, str], None]
# Seconds that the stage still takes, None if unknown -> a few words on the whole run, or none.
Whole = Callable[[float | None], str]

LINE_EVERY_SECONDS = 15.0


@dataclass
class _Pace:
    """The rate since the first report, which says nothing of an engine's start or an earlier try's work before it.

    A report of fewer is the first of a further part of the work.
    """

    first: tuple[float, int] | None = None
    last: int = 0

    def rate(self, done: int) -> float | None:
        """Return units a second; None before there are any since the first report."""
        now = time.monotonic()
        if self.first is None or done < self.last:
            self.first = now, done
        self.last = done
        started, before = self.first
        return (done - before) / max(now - started, 1e-9) if done > before else None


@dataclass
class _Lines:
    """Plain lines for logs: at most one every ``LINE_EVERY_SECONDS``."""

    title: str
    unit: str
    console: Console
    last: float
    whole: Whole
    pace: _Pace = field(default_factory=_Pace)

    def report(self, done: int, total: int, note: str) -> None:
        now, rate = time.monotonic(), self.pace.rate(done)
        if now - self.last < LINE_EVERY_SECONDS:
            return
        self.last = now
        said = [f"{done}/{total} {self.unit}" if total else f"{done} {self.unit}"]
        said += [] if rate is None else [f"{rate:.1f}/s"]
        left = (total - done) / rate if rate is not None and total else None
        said += [] if left is None else [f"{left:.0f} s left"]
        said += [words for words in (note, self.whole(left)) if words]
        self.console.print(f"  {self.title}: {', '.join(said)}", markup=False, highlight=False)


def stage_alone(left: float | None) -> str:
    """No words on a whole run: the stage is all there is."""
    return ""


@contextmanager
def progress(title: str, unit: str, console: Console, whole: Whole = stage_alone) -> Iterator[Report]:
    """Show ``title``'s progress while the block runs; the report it yields may be called from any thread."""
    if not console.is_terminal:
        yield _Lines(title, unit, console, time.monotonic(), whole).report
        return
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        TextColumn("{task.fields[whole]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None, note="", rate=unit, whole=whole(None))
        pace = _Pace()

        def report(done: int, total: int, note: str) -> None:
            rate = pace.rate(done)
            shown = unit if rate is None else f"{unit}, {rate:.1f}/s"
            left = (total - done) / rate if rate is not None and total else None
            bars.update(task, completed=done, total=total or None, note=note, rate=shown, whole=whole(left))

        yield report


def both(one: Report, other: Report) -> Report:
    """A report that goes to two places."""

    def report(done: int, total: int, note: str) -> None:
        one(done, total, note)
        other(done, total, note)

    return report


def silent(done: int, total: int, note: str) -> None:
    """A report that shows nothing."""


def make_console() -> Console:
    """A console where people read what a run does: standard error, so that standard output stays data."""
    return Console(file=sys.stderr, soft_wrap=True)
