"""Environment variables to set before Prefect is imported, and Prefect's log file.

These are defaults: variables set by the user stay. Nothing here leaves the machine.
"""

import logging
import os
import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.safe_text import redacted

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_COLORS": "false",
    # A flow run shows that it lives, for the automation that starts a dead one again. 30 is Prefect's least.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # With Prefect's default of 5, a flow takes minutes to notice that its server is gone for good.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    # On a CPU, sums in one order whatever the number of threads: processes with a share of the cores compute the bits
    # of one that has all.
    "MKL_CBWR": "AUTO",
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


class _Keyless(logging.Filter):
    """Takes keys out of a record's text and traceback before any handler formats it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


# The umask of all that prefloop writes; a run folder holds prompts, answers and weights.
UMASK = "PREFLOOP_UMASK"
PRIVATE_UMASK = 0o077
_OWN_ADDRESSES = ("127.0.0.1", "localhost")


def prepare_environment() -> None:
    """Set defaults for child processes and Prefect."""
    if any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        # A proxy for outside traffic must see neither this machine's own requests nor their secret. Where both are set,
        # programs take the name in small letters.
        exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        listed = [one.strip() for one in exempt.split(",") if one.strip()]
        own = [] if listed == ["*"] else [one for one in _OWN_ADDRESSES if one not in listed]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*listed, *own])
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def make_files_private() -> None:
    """Let only this user read what this process and its children write: files 0600, folders 0700.

    ``PREFLOOP_UMASK``, such as 027 or 002 for a folder that several users share, says otherwise.

    Raises ``UserError`` if it is no umask.
    """
    given = os.environ.get(UMASK, "")
    if not given:
        os.umask(os.umask(PRIVATE_UMASK) | PRIVATE_UMASK)
        return
    if re.fullmatch("0?[0-7]{3}", given) is None:
        raise UserError(f"{UMASK}: {given!r} is no umask; three octal digits, such as 077 (only you), 027 or 002")
    os.umask(int(given, 8))


class _LogFile(logging.FileHandler):
    """Log file that drops lines on a full disk: what matters is reported elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Ignore the error."""


def log_to_file(file: Path) -> None:
    """Write to ``file`` what Prefect would print; logs to its server still go there."""
    import prefect.main  # noqa: F401 - sets up the loggers whose handlers are replaced here
    from prefect.logging.handlers import PrefectConsoleHandler

    # Unsent lines are in the file anyway; otherwise Prefect would complain about each on standard error.
    logging.raiseExceptions = False
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in PREFECT_LOGGERS:
        logger = logging.getLogger(name)
        printed = [
            old for old in logger.handlers if isinstance(old, PrefectConsoleHandler) or name == "prefect._internal"
        ]
        for old in printed:
            logger.removeHandler(old)
        if printed:
            logger.addHandler(handler)
    keep_keys_out_of_logs()


def keep_keys_out_of_logs() -> None:
    """Hide keys in all that Prefect's loggers print, write or send to its server."""
    import prefect.main  # noqa: F401 - sets up the loggers

    for handler in {handler for name in PREFECT_LOGGERS for handler in logging.getLogger(name).handlers}:
        if not any(isinstance(filter_, _Keyless) for filter_ in handler.filters):
            handler.addFilter(_Keyless())
