"""One writer per run: the kernel's lock, and for file systems without locks, a lease with a heartbeat.

``lease.json`` in the run folder names its holder. A holder on this machine is gone when its process is. One on another
machine is gone when its lease has not changed for ``patience`` seconds while it was watched: clocks are never
compared.
"""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from pipeline.errors import RunError
from pipeline.storage.atomic import write_json
from pipeline.storage.holder import PATIENCE_SECONDS, Holder, now, own_holder, parse_holder, refusal, runs, say

LEASE_FILE = "lease.json"
# Prefect's flow run, and the process, that wrote to a run folder last.
FLOW_RUN_FILE = "flow_run.json"
ENDED_WELL = "ended"
BEAT_SECONDS = 10.0
# Error numbers of systems that have no such locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Lease:
    """A run that this process holds until the block of ``hold`` ends."""

    def __init__(self, root: Path, holder: Holder, every: float) -> None:
        """``every``: seconds between two heartbeats."""
        self.holder = holder
        self._file = root / LEASE_FILE
        self._every = every
        self._lost: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)

    def require(self) -> None:
        """Raise ``RunError`` if the last heartbeat found the lease lost: it is gone, or another process writes."""
        if self._lost is not None:
            raise RunError(self._lost)

    def check(self) -> None:
        """As ``require``, but checks now."""
        self._look()
        self.require()

    def start(self) -> None:
        """Keep the lease alive from a thread."""
        self._thread.start()

    def give_back(self) -> None:
        """Release the run for the next process."""
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            if read_holder(self._file) == self.holder:
                self._file.unlink()

    def _beat_on(self) -> None:
        last = time.monotonic()
        while not self._done.wait(self._every):
            self._look()
            if self._lost is not None:
                return
            if self._beat():
                last = time.monotonic()
            elif time.monotonic() - last > self.holder.patience:
                self._lost = f"{self._file}: no heartbeat could be written for {self.holder.patience:g} seconds"

    def _look(self) -> None:
        try:
            found = read_holder(self._file)
        except FileNotFoundError:
            self._lost = f"{self._file} is gone; was the run folder moved, removed or unmounted?"
        except OSError:
            # A file system that does not answer now may do so soon; heartbeats will show it.
            return
        else:
            if found is None or found.token != self.holder.token:
                self._lost = f"{self._file}: the run was taken over by {found or 'another process'}"

    def _is_own(self) -> bool:
        self._look()
        return self._lost is None

    def _beat(self) -> bool:
        self.holder = replace(self.holder, beats=self.holder.beats + 1, beat=now())
        try:
            # A disk may be so slow that another process has taken over meanwhile.
            write_json(self._file, asdict(self.holder), self._is_own)
        except OSError:
            try:
                # On a full disk, a file's time can still be changed.
                os.utime(self._file)
            except OSError:
                return False
        return True


@contextmanager
def hold(root: Path, every: float = BEAT_SECONDS, patience: float = PATIENCE_SECONDS) -> Iterator[Lease]:
    """Hold the run folder ``root`` while the block runs.

    Raises:
        RunLockedError: another process holds it; the message names it.
    """
    with _kernel_lock(root):
        holder = own_holder(patience)
        _take(root / LEASE_FILE, holder)
        # Files of heartbeats and takeovers that a kill has left.
        for left in root.glob(f"{LEASE_FILE}.*"):
            left.unlink(missing_ok=True)
        lease = Lease(root, holder, every)
        lease.start()
        try:
            yield lease
        finally:
            lease.give_back()


def read_holder(file: Path) -> Holder | None:
    """The holder of the lease ``file``; None if the file does not tell. Raises ``OSError``."""
    return parse_holder(file.read_bytes())


@contextmanager
def _kernel_lock(root: Path) -> Iterator[None]:
    with (root / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = None
            with suppress(OSError):
                holder = read_holder(root / LEASE_FILE)
            raise refusal(root, holder) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


def _take(file: Path, own: Holder) -> None:
    """Make the lease ``file``, or replace one whose holder is gone."""
    while not (_create(file, own) or _succeed(file, own)):
        pass


def _create(file: Path, own: Holder) -> bool:
    """Make ``file`` unless it exists; return whether it was made."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(json.dumps(asdict(own), indent=1) + "\n")
    return True


def _succeed(file: Path, own: Holder) -> bool:
    """Take over a lease whose holder is gone; return False if the lease has changed meanwhile.

    A lease has one successor: the process that makes the claim named after its contents. The lease itself is replaced,
    never absent. If a successor died before it replaced the lease, it has a successor in turn.

    Raises:
        RunLockedError: the holder or a successor is alive.
    """
    try:
        found = last = file.read_bytes()
        claim = _claim(file, found)
        while claim.exists():
            last = claim.read_bytes()
            claim = _claim(file, last)
        holder = _require_gone(file, last, own)
        if not _create(claim, own):
            return False
        # Old claims are removed, so this one may be for a lease that others have taken over long ago.
        if file.read_bytes() == found:
            write_json(file, asdict(own))
            say(file.parent, f"taken over from {holder or 'a process that left no name'}, which is gone")
            return True
        claim.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return False


def _claim(file: Path, contents: bytes) -> Path:
    return file.with_name(f"{LEASE_FILE}.{sha256(contents).hexdigest()[:32]}")


def _require_gone(file: Path, contents: bytes, own: Holder) -> Holder | None:
    """The holder named in a lease or claim with ``contents``. Raises ``RunLockedError`` if it shows signs of life."""
    holder = parse_holder(contents)
    if holder is not None and holder.machine == own.machine:
        if runs(holder):
            raise refusal(file.parent, holder)
    elif _changes(file, own.patience if holder is None else holder.patience, holder):
        raise refusal(file.parent, holder)
    return holder


def _changes(file: Path, patience: float, holder: Holder | None) -> bool:
    """Whether the lease shows a sign of life within ``patience`` seconds."""
    say(file.parent, f"waiting {patience:g} s for a sign of life from {holder or 'its holder'}")
    try:
        before = (file.read_bytes(), file.stat().st_mtime_ns)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(min(0.5, patience / 20))
            if (file.read_bytes(), file.stat().st_mtime_ns) != before:
                return True
    except FileNotFoundError:
        return False
    return False


def may_be_shown_as_running(root: Path) -> bool:
    """Return whether the last flow run did not come to its end, so that Prefect may not know of its end either."""
    try:
        last = json.loads((root / FLOW_RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(last, dict) or last.get(ENDED_WELL) is not True
