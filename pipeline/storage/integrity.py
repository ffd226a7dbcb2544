"""Check by SHA-256 that every file of a complete stage is as it was written. Torch-free."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from pipeline.errors import RunError, first_lines
from pipeline.storage.digests import files_sha256
from pipeline.storage.manifest import FREED, MANIFEST, DamagedError, Manifest, file_facts
from pipeline.storage.run_folder import Stage

# If a policy is the user's own model, its manifest names the folder and describes the files at that time.
POINTER, POINTED_FILES = "checkpoint", "checkpoint_files"
# If it is an adapter, its manifest names the model under it, and describes that one's files; a name relative to the
# stage's folder is one in the run folder.
BASE_MODEL, BASE_FILES = "base", "base_files"
# Folder in a policy's stage for the float32 weights that its own were rounded from; only the next training reads them.
MASTERS = "masters"
IGNORED = {MANIFEST, FREED}


@dataclass(frozen=True, slots=True)
class Damage:
    """One file of a stage that is not as it was written."""

    stage: str
    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def require_intact(stage: Stage) -> Manifest:
    """Return a stage's manifest before the stage is read, after checking that all files are as they were written.

    Raises:
        RunError: the stage is not complete, or needed files were removed on purpose.
        DamagedError: files are missing, changed or unexpected.
    """
    manifest = stage.require()
    freed = stage.freed()
    if freed is not None and not all(map(is_master, freed.files)):
        raise RunError(
            f"{stage.folder}: files were removed on {freed.time} to free disk space ({freed.reason}), but are needed; "
            f"prefloop run ... --from {stage.round}:{stage.name} makes them again"
        )
    found = [*file_faults(stage, manifest)]
    if found:
        lines = first_lines([str(fault) for fault in found])
        own = any(fault.file.is_relative_to(stage.folder) for fault in found)
        todo = stage.redo if own else "put back the model that the run was started with"
        raise DamagedError(f"{stage.title} is damaged:\n{lines}\n{todo}")
    return manifest


def file_faults(stage: Stage, manifest: Manifest, *, reread: bool = False) -> Iterator[Damage]:
    """Yield the files of ``manifest``, and of the model folder that it points to, that are not as they were written.

    ``reread``: read also large files whose times have not changed, since damage on the disk changes none.
    """
    freed = stage.freed()
    removed = set() if freed is None else set(freed.files)
    yield from _changed(stage, stage.folder, {n: f for n, f in manifest.files.items() if n not in removed}, reread)
    for file in sorted(path for path in stage.folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(stage.folder))
        # Engines load any weights that they find next to a model's own.
        if name not in manifest.files and name not in IGNORED and not file.name.startswith("."):
            yield Damage(stage.title, file, "does not belong to this stage")
    for named, described in ((POINTER, POINTED_FILES), (BASE_MODEL, BASE_FILES)):
        pointer, pointed = manifest.metrics.get(named), manifest.metrics.get(described)
        if isinstance(pointed, dict):
            facts = {name: facts for name, facts in pointed.items() if isinstance(facts, dict)}
            yield from _changed(stage, Path(os.path.normpath(stage.folder / str(pointer))), facts, reread)


def is_master(name: str) -> bool:
    """Return whether a stage's file is one of the float32 weights that only the next training reads."""
    return name.startswith(f"{MASTERS}/")


def model_files(folder: Path) -> dict[str, JsonValue]:
    """Return a manifest's record of the files of a model folder outside the run."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    digests = zip(files, files_sha256(files), strict=True)
    return {file.name: file_facts(digest, file.stat().st_size) for file, digest in digests}


def model_tree(folder: Path) -> dict[str, JsonValue]:
    """Return what ``model_files`` does, with the files of inner folders, for models that have them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digests = zip(files, files_sha256(files), strict=True)
    return {str(file.relative_to(folder)): file_facts(digest, file.stat().st_size) for file, digest in digests}


def _changed(stage: Stage, folder: Path, told: Mapping[str, Mapping[str, JsonValue]], reread: bool) -> Iterator[Damage]:
    present: list[str] = []
    for name, facts in told.items():
        file = folder / name
        if not file.is_file():
            yield Damage(stage.title, file, "is missing")
        elif file.stat().st_size != facts["bytes"]:
            yield Damage(stage.title, file, f"has {file.stat().st_size} bytes instead of {facts['bytes']}")
        else:
            present.append(name)
    try:
        digests = files_sha256([folder / name for name in present], reread=reread)
    except OSError as error:
        yield Damage(stage.title, Path(error.filename or folder), f"cannot be read ({error.strerror})")
        return
    for name, digest in zip(present, digests, strict=True):
        if digest != told[name]["sha256"]:
            yield Damage(stage.title, folder / name, "has changed since it was written (SHA-256)")
