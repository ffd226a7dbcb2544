"""A work folder brought up to date with its URL, with or without holding it. Torch-free.

Import this module only where a run has a URL.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from flows.loop.object_store.address import StoreAddress, StoreLink, linked, read_link
from flows.loop.object_store.client import LostWriteError, ObjectStore
from flows.loop.object_store.own_files import fetch_own_files, publish_own_files
from flows.loop.object_store.publish import Publisher
from flows.loop.object_store.pull import pull_begun, pull_stages
from flows.loop.object_store.store_lease import StoreLease, hold_url
from flows.run_folder.lease import hold
from pipeline.errors import RunLockedError, UserError
from pipeline.storage.run_folder import RunFolder


@contextmanager
def hold_store(root: Path, link: StoreLink, every: float, patience: float) -> Iterator[tuple[StoreLease, Publisher]]:
    """Hold the URL, fetch what it has, and yield its lease and what publishes. Raises as ``hold_run``."""
    store, run = ObjectStore(link.address, root), RunFolder(root)
    require_conditional(store)
    with hold_url(store, every, patience) as lease:
        listing = store.listing()
        fetch_own_files(store, root, link, listing)
        manifests = pull_stages(store, run, listing)
        pull_begun(store, run, listing)
        yield lease, Publisher(store, run, manifests, listing)


def fetch(address: StoreAddress, *, required: bool) -> Path:
    """Fetch a run's complete stages and own files; return its work folder. Another process may be writing the run.

    Raises:
        UserError: there is no run at the URL, and one is ``required``.
        RunError: the store does not answer, refuses, or is damaged.
    """
    root = address.work_folder
    store = ObjectStore(address, root)
    listing = store.listing()
    begun = "config.yaml" in listing
    if required and not begun:
        raise UserError(f"{store}: not a run folder (no config.yaml)")
    link = linked(address)
    # Whoever works in the folder keeps it up to date.
    with suppress(RunLockedError), hold(root):
        if begun:
            fetch_own_files(store, root, link, listing)
            pull_stages(store, RunFolder(root), listing)
    return root


def publish_answers(root: Path) -> None:
    """Publish files that a person has changed without holding the run, if it has a URL. Raises ``RunError``."""
    link = read_link(root)
    if link is not None:
        publish_own_files(ObjectStore(link.address, root), root, link)


def require_conditional(store: ObjectStore) -> None:
    """Raise ``UserError`` if the server takes a write whose condition does not hold."""
    name = f".conditional-{uuid4().hex}"
    etag = store.create(name, b"first")
    try:
        taken = []
        with suppress(LostWriteError):
            taken.append(store.create(name, b"second"))
        with suppress(LostWriteError):
            taken.append(store.replace(name, b"third", '"0"'))
        if taken:
            raise UserError(
                f"{store}: this server takes writes whose condition does not hold (If-None-Match, If-Match), so two "
                "processes could write at once; allowed: a store with conditional writes"
            )
        store.replace(name, b"fourth", etag)
    finally:
        store.remove([name])
