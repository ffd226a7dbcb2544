"""What has to be set before Prefect is imported, and where its log lines go.

Defaults only: whatever the user has set in the environment stays. Nothing here leaves the machine.
"""

import logging
import os
from pathlib import Path

from pipeline.safe_text import redacted

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_COLORS": "false",
    # With Prefect's own 5 a flow takes minutes to notice that its server is gone for good.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    # Waiting threads go to sleep: spinning for long, which is the default, costs a factor of ten as soon as another
    # process wants the same cores. But not at once: waking up for each of many short operations costs a fifth of a
    # training step. GNU's OpenMP, which is PyTorch's, puts the number of turns above the word.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "3000",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
PREFECT_LOGGERS = (
    "prefect",
    "prefect._internal",
    "prefect.flow_runs",
    "prefect.task_runs",
    "prefect.server",
    "httpx",
    "",
)


class _Redacting(logging.Formatter):
    """Keys stay out of lines, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def prepare_environment() -> None:
    """Set the defaults that child processes and Prefect read."""
    # Whoever has a policy of their own gets no number of turns, which would take its place.
    taken = {"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in os.environ else set()
    for name in DEFAULTS.keys() - taken:
        os.environ.setdefault(name, DEFAULTS[name])


class _LogFile(logging.FileHandler):
    """A log that is given up where its disk is full: what matters is said elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say nothing."""


def log_to_file(file: Path) -> None:
    """Send what Prefect would print to ``file`` instead; what it sends to its server still goes there."""
    import prefect.main  # noqa: F401 - sets up the loggers whose handlers are replaced here
    from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler

    # What cannot be sent is in the file all the same; Prefect would say so on standard error, line by line.
    logging.raiseExceptions = False
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in PREFECT_LOGGERS:
        logger = logging.getLogger(name)
        printed = [
            old for old in logger.handlers if isinstance(old, PrefectConsoleHandler) or name == "prefect._internal"
        ]
        for old in printed:
            logger.removeHandler(old)
        if printed:
            logger.addHandler(handler)
        for sent in logger.handlers:
            if isinstance(sent, APILogHandler):
                sent.setFormatter(_Redacting(sent.formatter._fmt if sent.formatter else None))
