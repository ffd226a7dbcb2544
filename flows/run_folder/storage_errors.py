"""Storage that fails while something is written: a full disk, a read-only folder, a mount that is gone."""

import errno
import os
import re
import shutil
import sqlite3
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from pipeline.errors import RunError

# What libraries raise that write files.
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
    """What to tell of a failed write; None if the storage is not to blame.

    Args:
        error: of one of ``WRITING``.
        root: the run folder.
        what: was being written.
        needed: bytes, about.
    """
    code = error_number(error)
    place = getattr(error, "filename", None) or root
    go_on = "What was complete is intact; the same command goes on from there"
    if code in FULL:
        told = f"the disk is full, or a limit is reached ({os.strerror(code)})"
        told += "" if needed is None else f": about {needed:,} bytes were to be written, {_free(root)} are free"
        return RunError(f"{place}: {told}; while {what} was written. {go_on}, once there is room")
    if code in _REFUSED:
        return RunError(f"{place}: cannot be written ({os.strerror(code)}), while {what} was. {go_on}")
    if code in _GONE and not root.is_dir():
        return RunError(f"{root}: the run folder is gone, while {what} was written; is its disk still mounted? {go_on}")
    if code in _GONE - {errno.ENOENT}:
        return RunError(f"{place}: its disk does not answer ({os.strerror(code)}), while {what} was written. {go_on}")
    return None


def error_number(error: BaseException) -> int | None:
    """The operating system's number of what went wrong, as far as the error tells."""
    if isinstance(error, sqlite3.Error):
        # The low byte is the kind, what is above it the detail.
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
