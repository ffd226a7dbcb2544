"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# done, total, a short note such as the current loss
Report = Callable[[int, int, str], None]

LINE_EVERY_SECONDS = 15.0


@dataclass
class _Lines:
    """Plain lines for logs: at most one every ``LINE_EVERY_SECONDS``."""

    title: str
    unit: str
    console: Console
    started: float
    last: float

    def report(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SECONDS:
            return
        self.last = now
        rate = done / max(now - self.started, 1e-9)
        left = (total - done) / rate if rate > 0 else 0.0
        self.console.print(
            f"  {self.title}: {done}/{total} {self.unit}, {rate:.1f}/s, {left:.0f} s left{note and ', ' + note}",
            markup=False,
            highlight=False,
        )


@contextmanager
def progress(title: str, unit: str, console: Console) -> Iterator[Report]:
    """Show ``title``'s progress while the block runs; the report it yields may be called from any thread."""
    if not console.is_terminal:
        now = time.monotonic()
        yield _Lines(title, unit, console, now, now).report
        return
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None, note="", rate=unit)
        started = time.monotonic()

        def report(done: int, total: int, note: str) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bars.update(task, completed=done, total=total, note=note, rate=f"{unit}, {rate:.1f}/s")

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
