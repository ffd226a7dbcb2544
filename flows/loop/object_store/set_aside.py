"""Local files that the store's take the place of: they are moved to ``set_aside``, never removed. Torch-free."""

import time
from pathlib import Path

from flows.run_folder.redo import FOLDER
from pipeline.storage.atomic import sync_folder
from pipeline.storage.holder import say
from pipeline.storage.manifest import MANIFEST, DamagedError, read_manifest


def keep_aside(root: Path, path: Path) -> Path:
    """Move a file or folder of the run ``root`` to ``set_aside/TIME``, and say so; return its new place."""
    stamp, number = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), 0
    while (place := root / FOLDER / f"{stamp}_local{number or ''}" / path.relative_to(root)).exists():
        number += 1
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    sync_folder(path.parent)
    say(root, f"{path.relative_to(root)} differs from the store's; the local one is kept in {place.parent}")
    return place


def stages_set_aside(root: Path) -> set[tuple[str, str]]:
    """Return title and manifest's SHA-256 of the stages that ``--from`` has set aside in the work folder ``root``."""
    found: set[tuple[str, str]] = set()
    for file in (root / FOLDER).glob(f"*/round_*/*/{MANIFEST}"):
        title = f"{file.parent.parent.name}/{file.parent.name}"
        if not file.parents[2].name.rpartition("_")[2].startswith("local"):
            try:
                found.add((title, read_manifest(file).sha256))
            except DamagedError:
                continue
    return found
