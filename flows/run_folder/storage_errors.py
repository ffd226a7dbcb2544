"""Storage that fails during a write: a full disk, a read-only folder, a mount that is gone."""

import errno
import os
import re
import shutil
import sqlite3
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from pipeline.errors import RunError

# Errors raised by libraries that write files.
WRITING = (OSError, SafetensorError, sqlite3.Error, pa.ArrowException)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EIO}
_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
_SAID = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)


def storage_error(error: Exception, root: Path, what: str, needed: int | None = None) -> RunError | None:
    """The error to raise for a failed write; None if the storage is not to blame.

    Args:
        error: one of ``WRITING``.
        root: the run folder.
        what: description of what was being written.
        needed: about how many bytes it needs.
    """
    code = error_number(error)
    place = getattr(error, "filename", None) or root
    go_on = "Everything that was complete is intact; the same command continues from there"
    if code in FULL:
        told = f"the disk is full, or a limit is reached ({os.strerror(code)})"
        told += "" if needed is None else f": about {needed:,} bytes are needed, and {_free(root)} are free"
        return RunError(f"{place}: {told}; the run was writing {what}. {go_on}, once there is room")
    if code in _REFUSED:
        return RunError(f"{place}: cannot be written ({os.strerror(code)}); the run was writing {what}. {go_on}")
    if code in _GONE and not root.is_dir():
        return RunError(f"{root}: the run folder is gone; is its disk mounted? The run was writing {what}. {go_on}")
    if code in _GONE - {errno.ENOENT}:
        return RunError(f"{place}: its disk does not answer ({os.strerror(code)}); the run was writing {what}. {go_on}")
    return None


def error_number(error: BaseException) -> int | None:
    """The operating system's number for the error, if the error gives one."""
    if isinstance(error, sqlite3.Error):
        # The low byte is the kind of error, the rest is detail.
        return _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = _SAID.search(str(error))
    return int(said.group(1)) if said else None


def _free(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free:,}"
    except OSError:
        return "an unknown number of"
