"""Lines of a process's log worth showing, with their level and without keys. Text in, lines out; torch-free.

A Python traceback becomes one line of several rows. Progress bars are left out; INFO lines from vLLM are shown at
DEBUG.
"""

import logging
import re
from dataclasses import dataclass

from pipeline.safe_text import hide_secrets, visible

MAX_LETTERS = 2000
# The end of a traceback says what happened.
MAX_TRACEBACK_ROWS = 40

# (MainProcess pid=12973) INFO 11-27 17:39:10 [core.py:133] ...
_VLLM = re.compile(
    r"^(?:\([\w ]+pid=\d+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[\S+\] )?"
)
# [W1127 17:39:15.373932014 utils.cpp:68] ..., of PyTorch's C++
GLOG = re.compile(r"^(?:\[rank\d+\]:)?\[?([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ ")
PLAIN = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
PYTHON_WARNING = re.compile(r"^\S+:\d+: \w*Warning: ")
ERROR_NAME = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b")
_BAR = re.compile(r"\d+%\|| \d+% Completed \||it/s\]|s/it\]")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class LogLine:
    """One line to show; ``level`` is a level of ``logging``."""

    level: int
    text: str


class LogLines:
    """Turn a log, fed piece by piece, into lines to show."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        """``secrets`` never appear in a line."""
        self._secrets = secrets
        self._rest = ""
        self._traceback: list[str] = []

    def feed(self, text: str) -> list[LogLine]:
        """Return the lines completed by ``text``, which may end in the middle of a line."""
        *rows, self._rest = (self._rest + text).split("\n")
        return [line for row in rows for line in self._row(row)]

    def end(self) -> list[LogLine]:
        """Return the remaining lines at the end of the log."""
        row, self._rest = self._rest, ""
        return [*(self._row(row) if row else []), *self._end_traceback()]

    def _row(self, row: str) -> list[LogLine]:
        # Drop text that a carriage return overwrites.
        row = _COLOURS.sub("", row.rstrip().rpartition("\r")[2])
        if row == TRACEBACK:
            before = self._end_traceback() if not self._chained() else []
            self._traceback.append(row)
            return before
        if self._traceback:
            if not row or row.startswith((" ", "During handling", "The above exception")):
                self._traceback.append(row)
                return []
            if ERROR_NAME.match(row) and not ERROR_NAME.match(self._traceback[-1]):
                self._traceback.append(row)
                return []
        done = self._end_traceback()
        if not row.strip() or _BAR.search(row):
            return done
        return [*done, self._shown(level_of(row), _VLLM.sub("", row))]

    def _chained(self) -> bool:
        said = [row for row in self._traceback if row]
        return bool(said) and said[-1].startswith(("During handling", "The above exception"))

    def _end_traceback(self) -> list[LogLine]:
        rows, self._traceback = self._traceback, []
        while rows and not rows[-1]:
            rows.pop()
        if not rows:
            return []
        if len(rows) > MAX_TRACEBACK_ROWS:
            rows = [TRACEBACK, "  ...", *rows[2 - MAX_TRACEBACK_ROWS :]]
        return [self._shown(logging.ERROR, "\n".join(rows), limit=4 * MAX_LETTERS)]

    def _shown(self, level: int, text: str, limit: int = MAX_LETTERS) -> LogLine:
        return LogLine(level, visible(hide_secrets(text, self._secrets), limit))


def level_of(row: str) -> int:
    """Return the level at which a row of a log is shown."""
    if found := _VLLM.match(row):
        level: int = logging.getLevelNamesMapping()[found[1]]
        return logging.DEBUG if level == logging.INFO else level
    if found := GLOG.match(row):
        return {"I": logging.DEBUG, "W": logging.WARNING}.get(found[1], logging.ERROR)
    if found := PLAIN.match(row):
        return logging.getLevelNamesMapping()[found[1]]
    if PYTHON_WARNING.match(row):
        return logging.WARNING
    if ERROR_NAME.match(row):
        return logging.ERROR
    return logging.INFO
