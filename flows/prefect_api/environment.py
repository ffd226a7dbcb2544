"""Environment variables to set before Prefect is imported, and Prefect's log file.

These are defaults: variables set by the user stay. Nothing here leaves the machine.
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
    # With Prefect's default of 5, a flow takes minutes to notice that its server is gone for good.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    # Waiting threads sleep: long spinning, the default, is ten times slower as soon as another process wants the same
    # cores. But they spin briefly first: waking up for each of many short operations costs a fifth of a training step.
    # In GNU's OpenMP, which PyTorch uses, the spin count overrides the wait policy.
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
    """Formatter that keeps keys out of lines and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def prepare_environment() -> None:
    """Set defaults for child processes and Prefect."""
    # A user's own wait policy gets no spin count, which would override it.
    taken = {"GOMP_SPINCOUNT"} if "OMP_WAIT_POLICY" in os.environ else set()
    for name in DEFAULTS.keys() - taken:
        os.environ.setdefault(name, DEFAULTS[name])


class _LogFile(logging.FileHandler):
    """Log file that drops lines on a full disk: what matters is reported elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Ignore the error."""


def log_to_file(file: Path) -> None:
    """Write to ``file`` what Prefect would print; logs to its server still go there."""
    import prefect.main  # noqa: F401 - sets up the loggers whose handlers are replaced here
    from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler

    # Unsent lines are in the file anyway; otherwise Prefect would complain about each on standard error.
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
