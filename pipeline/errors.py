"""Errors that stop a run, and how to word them. Torch-free."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake in config or data: shown as a few lines, exit code 2, never a traceback."""


class RefusedTurnsError(UserError):
    """A chat template does not render these turns."""


class RunError(Exception):
    """A failure while running (non-finite loss, stale weights, a dead child): exit code 1."""


class Paused(Exception):  # noqa: N818 - the run waits for a person, and nothing has failed
    """A round's gate, or its gold, needs answers from people: exit code 3; the message says why and how to answer."""


class RowsError(RunError):
    """A failure in some of the current rows: non-finite numbers, or a failed self-test."""

    def __init__(self, message: str, example_ids: tuple[str, ...]) -> None:
        """``example_ids``: the ids of those rows."""
        super().__init__(message)
        self.example_ids = example_ids


def first_lines(items: Sequence[str], limit: int = 5) -> str:
    """Return the first ``limit`` items, one per line, and the number left out."""
    shown = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        shown.append(f"  ... and {len(items) - limit} more")
    return "\n".join(shown)


class RunLockedError(UserError):
    """Another process is writing to the run folder."""


def nearest(text: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?``, or an empty string if no name is close."""
    close = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class NonFiniteError(RowsError):
    """Loss, gradient or weights became infinite or NaN. ``step`` counts from 1."""

    def __init__(self, message: str, step: int, example_ids: tuple[str, ...]) -> None:
        """``example_ids``: examples whose loss is not finite, or the whole batch if only the gradient is not."""
        super().__init__(message, example_ids)
        self.step = step
