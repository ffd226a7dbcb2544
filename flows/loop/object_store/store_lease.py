"""One writer per URL: the lease as an object, made and changed only by conditional writes.

The rules are those of ``flows.run_folder.lease``: a holder on this machine is gone when its process is, one on another
machine when the lease has not changed for its ``patience`` seconds while it was watched. A lease that is given back
stays as an object that says so: it is only ever replaced, so that no removal can meet a takeover. Torch-free.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

from flows.loop.object_store.address import StoreError
from flows.loop.object_store.client import LostWriteError, ObjectStore
from pipeline.errors import RunError
from pipeline.storage.atomic import json_text
from pipeline.storage.holder import Holder, now, own_holder, parse_holder, refusal, runs, say

LEASE_OBJECT = "lease.json"
_GIVEN_BACK = "given_back"


class StoreLease:
    """A URL that this process holds until the block of ``hold_url`` ends."""

    def __init__(self, store: ObjectStore, holder: Holder, etag: str, every: float) -> None:
        """``every``: seconds between two heartbeats."""
        self.holder = holder
        self._store = store
        self._etag = etag
        self._every = every
        self._lost: str | None = None
        self._last = time.monotonic()
        self._why = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="store lease", daemon=True)

    def require(self) -> None:
        """Raise ``RunError`` if a heartbeat found the lease lost, or none could be written for too long."""
        silent = time.monotonic() - self._last
        if self._lost is None and silent > self.holder.patience:
            self._lost = f"{self._store}: the store took no heartbeat for {silent:.0f} seconds {self._why}".rstrip()
        if self._lost is not None:
            raise RunError(f"{self._lost}; the local work is intact, and the same command continues from there")

    def check(self) -> None:
        """As ``require``, but asks the store now. Raises ``StoreError`` if it does not answer."""
        self._look()
        self.require()

    def start(self) -> None:
        """Keep the lease alive from a thread."""
        self._thread.start()

    def give_back(self) -> None:
        """Release the URL for the next process; if the store does not answer, its patience will."""
        self._done.set()
        self._thread.join()
        content = json_text({_GIVEN_BACK: True, "token": self.holder.token}).encode()
        with suppress(StoreError, LostWriteError):
            self._store.replace(LEASE_OBJECT, content, self._etag)

    def _beat_on(self) -> None:
        while not self._done.wait(self._every) and self._lost is None:
            asked = time.monotonic()
            try:
                self._beat()
                self._last, self._why = asked, ""
            except StoreError as error:
                self._why = f"({error})"

    def _beat(self) -> None:
        self.holder = replace(self.holder, beats=self.holder.beats + 1, beat=now())
        try:
            self._etag = self._store.replace(LEASE_OBJECT, _content(self.holder), self._etag)
        except LostWriteError:
            self._look()

    def _look(self) -> None:
        """Compare tokens: a write whose answer was lost may have been made by this process."""
        found = self._store.read(LEASE_OBJECT)
        holder = None if found is None else parse_holder(found[0])
        if found is not None and holder is not None and holder.token == self.holder.token:
            if not self._thread.is_alive() or threading.current_thread() is self._thread:
                self._etag = found[1]
            return
        self._lost = f"{self._store}: the run was taken over by {holder or 'another process'}"


@contextmanager
def hold_url(store: ObjectStore, every: float, patience: float) -> Iterator[StoreLease]:
    """Hold the URL of ``store`` while the block runs.

    Raises:
        RunLockedError: another process holds it; the message names it.
        StoreError: the store does not answer, or refuses.
    """
    holder = own_holder(patience)
    lease = StoreLease(store, holder, take_lease(store, holder), every)
    lease.start()
    try:
        yield lease
    finally:
        lease.give_back()


def take_lease(store: ObjectStore, own: Holder) -> str:
    """Make the lease, or replace one whose holder is gone; return its ETag. Raises as ``hold_url``."""
    while True:
        with suppress(LostWriteError):
            return store.create(LEASE_OBJECT, _content(own))
        found = store.read(LEASE_OBJECT)
        if found is None:
            continue
        content, etag = found
        holder = parse_holder(content)
        if holder is not None and holder.token == own.token:
            # The answer to this process's own write was lost.
            return etag
        if not _given_back(content):
            _require_gone(store, holder, etag, own)
        with suppress(LostWriteError):
            taken = store.replace(LEASE_OBJECT, _content(own), etag)
            if not _given_back(content):
                say(store, f"taken over from {holder or 'a process that left no name'}, which is gone")
            return taken


def _require_gone(store: ObjectStore, holder: Holder | None, etag: str, own: Holder) -> None:
    """Raise ``RunLockedError`` if the holder shows signs of life."""
    if holder is not None and holder.machine == own.machine:
        if runs(holder):
            raise refusal(store, holder)
        return
    patience = own.patience if holder is None else holder.patience
    say(store, f"waiting {patience:g} s for a sign of life from {holder or 'its holder'}")
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(2.0, patience / 20))
        found = store.read(LEASE_OBJECT)
        if found is None or _given_back(found[0]):
            return
        if found[1] != etag:
            raise refusal(store, parse_holder(found[0]) or holder)


def _content(holder: Holder) -> bytes:
    return json_text(asdict(holder)).encode()


def _given_back(content: bytes) -> bool:
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and plain.get(_GIVEN_BACK) is True
