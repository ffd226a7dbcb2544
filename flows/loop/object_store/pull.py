"""From the store to the work folder: the stages that its manifests name, and the shards that are sealed. Torch-free.

The store's stages are the run's: a local stage that differs from the store's, or that was made from others than are
there, is set aside. Every file is checked against its manifest's SHA-256 before the stage appears.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flows.loop.object_store.client import ObjectStore, StoredObject
from flows.loop.object_store.set_aside import keep_aside, stages_set_aside
from flows.run_folder.links import inside
from flows.run_folder.stage_table import STAGES
from pipeline.storage.atomic import sync_folder
from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import FREED, MANIFEST, DamagedError, Manifest, read_freed, read_manifest
from pipeline.storage.run_folder import RunFolder, Stage
from pipeline.storage.seals import MARKER, SEALS, Seals, sealed_files, tried

_Listing = Mapping[str, StoredObject]


def pull_stages(store: ObjectStore, run: RunFolder, listing: _Listing) -> dict[str, str]:
    """Fetch the complete stages; return the SHA-256 of the store's manifests, by title.

    Raises:
        DamagedError: a manifest or file in the store is not as it was written.
        StoreError: the store does not answer, or refuses.
    """
    aside, there = stages_set_aside(run.root), {}
    for stage in _stages(run, listing, MANIFEST):
        manifest = _fetch_manifest(store, stage)
        there[stage.title] = manifest.sha256
        if (stage.title, manifest.sha256) not in aside:
            _fetch_stage(store, run, stage, manifest, listing)
    for stage in in_order(run, [stage.title for stage in run.stages()]):
        if stage.title not in there and not _fits(run, stage):
            keep_aside(run.root, stage.folder)
    return there


def pull_begun(store: ObjectStore, run: RunFolder, listing: _Listing) -> None:
    """Fetch the sealed files of stages that are not complete, for the next try to continue from."""
    for stage in _stages(run, listing, MARKER, ".partial"):
        if stage.folder.exists():
            continue
        base = f"{stage.title}.partial"
        marker = store.read(f"{base}/{MARKER}")
        if marker is None or (stage.partial.exists() and tried(stage.partial) != _key(marker[0])):
            continue
        if not stage.partial.exists():
            stage.partial.mkdir(parents=True)
            (stage.partial / MARKER).write_bytes(marker[0])
        for name in (name for name in listing if name.startswith(f"{base}/") and PurePosixPath(name).name == SEALS):
            _fetch_sealed(store, stage, name, listing)


def in_order(run: RunFolder, titles: list[str]) -> list[Stage]:
    """Return the stages with these titles in the order of making, an input before what is made from it."""
    found = []
    for title in titles:
        folder, _, name = title.partition("/")
        number = folder.removeprefix("round_")
        if number.isdecimal() and name in STAGES:
            found.append(run.stage(int(number), name))
    order = [*STAGES]
    return sorted(found, key=lambda stage: (stage.round, order.index(stage.name)))


def _stages(run: RunFolder, listing: _Listing, file: str, suffix: str = "") -> list[Stage]:
    ends = f"{suffix}/{file}"
    return in_order(run, [name.removesuffix(ends) for name in listing if name.endswith(ends)])


def _fetch_manifest(store: ObjectStore, stage: Stage) -> Manifest:
    """Return the store's manifest of a stage, which is kept beside the stage until its files are there."""
    scratch = _scratch(stage)
    scratch.mkdir(parents=True, exist_ok=True)
    store.download(f"{stage.title}/{MANIFEST}", scratch / MANIFEST)
    try:
        return read_manifest(scratch / MANIFEST)
    except DamagedError as error:
        raise DamagedError(f"{store}/{stage.title}/{MANIFEST}: damaged in the store: {error}") from None


def _fetch_stage(store: ObjectStore, run: RunFolder, stage: Stage, manifest: Manifest, listing: _Listing) -> None:
    scratch, base = _scratch(stage), stage.title
    if stage.folder.exists():
        if _sha256(stage) == manifest.sha256:
            if f"{base}/{FREED}" in listing and not (stage.folder / FREED).exists():
                _fetch_freed(store, stage)
            shutil.rmtree(scratch)
            return
        keep_aside(run.root, stage.folder)
    if f"{base}/{FREED}" in listing:
        store.download(f"{base}/{FREED}", scratch / FREED)
    freed = read_freed(scratch)
    for name, facts in manifest.files.items():
        if freed is None or name not in freed.files:
            _fetch_file(store, f"{base}/{name}", inside(scratch, name), str(facts["sha256"]))
    if stage.partial.exists():
        keep_aside(run.root, stage.partial)
    sync_folder(scratch)
    scratch.rename(stage.folder)
    sync_folder(stage.folder.parent)


def _fetch_freed(store: ObjectStore, stage: Stage) -> None:
    """Take over that another machine has removed files to free disk space; retention removes them here too."""
    scratch = stage.folder / f"{FREED}.tmp"
    store.download(f"{stage.title}/{FREED}", scratch)
    scratch.replace(stage.folder / FREED)


def _fetch_file(store: ObjectStore, name: str, file: Path, sha256: str) -> None:
    """Fetch one file unless an interrupted fetch has. Raises ``DamagedError``."""
    if file.is_file() and file_sha256(file) == sha256:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.download(name, file)
    except FileNotFoundError:
        raise DamagedError(f"{store}/{name}: is missing in the store, but its manifest names it") from None
    if file_sha256(file) != sha256:
        raise DamagedError(f"{store}/{name}: has changed in the store since it was written (SHA-256)")


def _fetch_sealed(store: ObjectStore, stage: Stage, journal: str, listing: _Listing) -> None:
    """Fetch what the ``journal`` of seals names and the partial folder lacks, and seal it there."""
    folder = inside(stage.partial, str(PurePosixPath(journal).relative_to(f"{stage.title}.partial"))).parent
    told = store.read(journal)
    folder.mkdir(parents=True, exist_ok=True)
    seals = Seals(folder)
    for name, digest in ({} if told is None else sealed_files(told[0])).items():
        file, stored = inside(folder, name), str(PurePosixPath(journal).parent / name)
        if file.exists() or stored not in listing:
            continue
        scratch = file.with_name(f"{file.name}.tmp")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.download(stored, scratch)
        except FileNotFoundError:
            continue
        if file_sha256(scratch) == digest:
            seals.of(name)(scratch)
            scratch.replace(file)


def _fits(run: RunFolder, stage: Stage) -> bool:
    """Whether a stage that is only here was made from the inputs that are here."""
    try:
        made_from = stage.manifest_alone().made_from
        return all(read_manifest(run.root / title / MANIFEST).sha256 == sha256 for title, sha256 in made_from.items())
    except FileNotFoundError:
        return False
    except DamagedError:
        # Its damage is reported where the stage is read.
        return True


def _sha256(stage: Stage) -> str:
    try:
        return stage.manifest_alone().sha256
    except (FileNotFoundError, DamagedError):
        return ""


def _key(marker: bytes) -> str:
    try:
        return str(json.loads(marker)["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _scratch(stage: Stage) -> Path:
    return stage.folder.with_name(f"{stage.name}.fetched")
