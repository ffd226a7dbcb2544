"""Follow the children's log files while a stage runs, and copy their lines to the stage's own log.

The files in RUN/logs keep everything. A stage shows at most ``MAX_LINES`` lines, and none that an earlier stage of the
run has shown, so an engine's warnings appear only at its first start.
"""

import logging
from pathlib import Path
from threading import Lock

from flows.workers.logs.log_lines import LogLine, LogLines
from pipeline.safe_text import secrets_of

MAX_LINES = 200
# The most bytes read per look, however much was written.
MAX_BYTES = 1 << 20
_PATTERNS = ("sampler*.log", "trainer*.log", "labeller*.log")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class ChildLogs:
    """The children's log files of one run, read from their ends at construction."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = {file: file.stat().st_size for file in self._files()}
        self._lines: dict[Path, LogLines] = {}
        self._secrets = secrets_of()
        self._seen: set[LogLine] = set()
        self._shown = 0
        self._lock = Lock()

    def begin(self) -> None:
        """Start a stage, which may show ``MAX_LINES`` lines."""
        self._shown = 0

    def show(self, log: Log, over: bool = False) -> None:
        """Log what the children have written since the last call; ``over``: the stage has ended."""
        with self._lock:
            for file in self._files():
                lines = self._lines.setdefault(file, LogLines(self._secrets))
                found = lines.feed(self._news(file)) + (lines.end() if over else [])
                for line in found:
                    self._log(log, file, line)

    def _log(self, log: Log, file: Path, line: LogLine) -> None:
        # Show an error every time that it happens.
        if line.level < logging.ERROR and line in self._seen:
            return
        self._seen.add(line)
        self._shown += line.level > logging.DEBUG
        if self._shown <= MAX_LINES or line.level >= logging.ERROR:
            log.log(line.level, "%s: %s", file.stem, line.text)
        elif self._shown == MAX_LINES + 1:
            log.info("more than %d lines; the others are in %s", MAX_LINES, file)

    def _news(self, file: Path) -> str:
        start = self._ends.get(file, 0)
        with file.open("rb") as log:
            end = log.seek(0, 2)
            first = max(start, end - MAX_BYTES)
            log.seek(first)
            self._ends[file] = end
            text = log.read(end - first).decode(errors="replace")
            # The rest of a cut line could be part of a key.
            return text if first == start else text.partition("\n")[2]

    def _files(self) -> list[Path]:
        return sorted(file for pattern in _PATTERNS for file in self._folder.glob(pattern))
