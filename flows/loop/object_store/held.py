"""A run that this process holds: the lease of its folder, and, if it has a URL, the lease there and what is published.

Torch-free. The store's libraries are loaded only for a run that has a URL.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.loop.object_store.address import StoreError, StoreLink, read_link
from flows.run_folder.lease import BEAT_SECONDS, Lease, hold
from pipeline.errors import RunError, UserError
from pipeline.storage.holder import PATIENCE_SECONDS

if TYPE_CHECKING:
    from flows.loop.object_store.publish import Publisher
    from flows.loop.object_store.store_lease import StoreLease

# Seconds between two looks for sealed shards.
SHARD_SECONDS = 5.0
logger = logging.getLogger("prefect.prefloop")


class HeldRun:
    """A run that is only local; see ``HeldUrl``."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def require(self) -> None:
        """Raise ``RunError`` if a lease was found lost."""
        self._lease.require()

    def check(self) -> None:
        """As ``require``, but checks now."""
        self._lease.check()

    def publish(self) -> None:
        """Bring everything that is complete to the store. Raises ``RunError``."""


class HeldUrl(HeldRun):
    """A run with a URL."""

    def __init__(self, lease: Lease, there: "StoreLease", publisher: "Publisher", link: StoreLink) -> None:
        super().__init__(lease)
        self._there = there
        self._publisher = publisher
        self._link = link
        self._one = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._publish_shards, name="shards", daemon=True)

    def require(self) -> None:
        """Raise ``RunError`` if a lease was found lost."""
        super().require()
        self._there.require()

    def check(self) -> None:
        """As ``require``, but checks now."""
        super().check()
        self._there.check()

    def publish(self) -> None:
        """Bring everything that is complete to the store. Raises ``RunError``."""
        with self._one:
            self.check()
            self._publisher.publish_stages()
            self._publisher.publish_own(self._link)

    def publish_last(self, error: BaseException) -> None:
        """Publish as far as possible what a run that ends with ``error`` has made."""
        try:
            self.require()
            if not isinstance(error, StoreError):
                with self._one:
                    self._publisher.publish_sealed()
                self.publish()
        except (RunError, UserError, OSError) as failed:
            logger.warning("not all is published: %s", failed)

    def start(self) -> None:
        """Publish sealed shards from a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it has not published, the next ``publish`` or run does."""
        self._done.set()
        self._thread.join()

    def _publish_shards(self) -> None:
        told = False
        while not self._done.wait(SHARD_SECONDS):
            try:
                with self._one:
                    self._there.require()
                    self._publisher.publish_sealed()
                told = False
            except (RunError, UserError, OSError) as error:
                if not told:
                    logger.warning("a shard is not yet published: %s", error)
                told = True


@contextmanager
def hold_run(root: Path, every: float = BEAT_SECONDS, patience: float = PATIENCE_SECONDS) -> Iterator[HeldRun]:
    """Hold the run folder ``root``, and its URL if it has one, while the block runs.

    With a URL, the work folder has all that the store has when the block begins, and the store all that is complete in
    the work folder when it begins and when it ends.

    Raises:
        RunLockedError: another process holds the folder or the URL; the message names it.
        RunError: the store does not answer, refuses, is damaged, or the URL was taken over.
    """
    with hold(root, every, patience) as lease:
        link = read_link(root)
        if link is None:
            yield HeldRun(lease)
            return
        from flows.loop.object_store.transfer import hold_store

        with hold_store(root, link, every, patience) as (there, publisher):
            held = HeldUrl(lease, there, publisher, link)
            held.publish()
            held.start()
            try:
                yield held
            except BaseException as error:
                held.stop()
                held.publish_last(error)
                raise
            held.stop()
            held.publish()
