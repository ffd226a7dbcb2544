"""The files of a run that belong to no stage: config, answers of people, accounts, report. Torch-free.

They change in place, so both sides are compared with what they were when they were last equal (``StoreLink.seen``).
A file that has changed on one side goes to the other; if on both, the store's is taken and the local one set aside.
"""

from collections.abc import Mapping
from pathlib import Path

from flows.loop.object_store.address import LINK_FILE, StoreLink
from flows.loop.object_store.client import ObjectStore, StoredObject
from flows.loop.object_store.set_aside import keep_aside
from flows.loop.object_store.store_lease import LEASE_OBJECT
from flows.run_folder.lease import FLOW_RUN_FILE
from flows.run_folder.links import inside
from flows.run_folder.redo import FOLDER
from pipeline.storage.atomic import sync_folder
from pipeline.storage.digests import file_sha256

# Of this machine alone: logs, the lease and link, Prefect's flow run, what was set aside.
_STAYS = (".", LEASE_OBJECT, LINK_FILE, FLOW_RUN_FILE, "logs/", f"{FOLDER}/", "round_")
_UNFINISHED = (".tmp", ".fetched")


def is_own_file(name: str) -> bool:
    """Return whether the file or object ``name`` is one of a run's own files."""
    return not name.startswith(_STAYS) and not name.endswith(_UNFINISHED)


def fetch_own_files(store: ObjectStore, root: Path, link: StoreLink, listing: Mapping[str, StoredObject]) -> None:
    """Bring the files that have changed in the store to the work folder ``root``.

    Raises ``RunError`` for an object whose name leads out of it.
    """
    for name, there in listing.items():
        if not is_own_file(name) or link.seen.get(name, ("", ""))[0] == there.etag:
            continue
        file, known = inside(root, name), link.seen.get(name, ("", ""))[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f"{file.name}.fetched")
        try:
            store.download(name, scratch)
        except FileNotFoundError:
            continue
        fetched = file_sha256(scratch)
        if file.is_file() and file_sha256(file) not in (known, fetched):
            keep_aside(root, file)
        scratch.replace(file)
        sync_folder(file.parent)
        link.seen[name] = (there.etag, fetched)
    link.write(root)


def publish_own_files(store: ObjectStore, root: Path, link: StoreLink) -> None:
    """Bring the files that have changed in the work folder ``root`` to the store."""
    changed = False
    for file in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        name = file.relative_to(root).as_posix()
        if not is_own_file(name):
            continue
        content_hash = file_sha256(file)
        if link.seen.get(name, ("", ""))[1] != content_hash:
            link.seen[name] = (store.write(name, file.read_bytes()), content_hash)
            changed = True
    if changed:
        link.write(root)
