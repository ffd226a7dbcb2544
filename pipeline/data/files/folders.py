"""Data files of a path: one file, a folder, a pattern; which split each belongs to. Torch-free."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.data.user_data import EVERY_SPLIT
from pipeline.errors import UserError
from pipeline.types.counts import number_of

TEXT_KINDS = ("jsonl", "json", "csv", "tsv")
COLUMNAR_KINDS = ("parquet", "arrow", "feather")
SUFFIXES = (*(f".{kind}{end}" for kind in TEXT_KINDS for end in ("", ".gz")), *(f".{kind}" for kind in COLUMNAR_KINDS))
# Words in file names, as the hub reads them, and the split that each means.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_WORD = re.compile(rf"(?:^|[-_. /])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?=[-_. /\d]|$)")
_SHARD = re.compile(r"(?P<split>.+?)[-_]\d+-of-\d+")
STATE, PARTS = "state.json", "dataset_dict.json"
# What ``datasets`` and the hub write next to the rows.
_ABOUT = frozenset({STATE, PARTS, "dataset_info.json", "dataset_infos.json"})
_POINTERS = {b"version https://git-lfs": "git lfs pull", b"/annex/objects/": "git annex get"}


def data_files(path: str, split: str | None = None) -> list[Path]:
    """Return ``_found_files``. Raises ``UserError`` as it does, and for a name that is not UTF-8."""
    files = _found_files(path, split)
    for file in files:
        # Names are kept with prompts and digests, which are UTF-8.
        shown = str(file).encode("utf-8", "backslashreplace").decode()
        if shown != str(file):
            raise UserError(f"{shown}: the name is not UTF-8; rename the file, or the folder")
    return files


def _found_files(path: str, split: str | None) -> list[Path]:
    """Return the data files at ``path``: one file, a folder with its subfolders, or the matches of a pattern.

    Hidden files and folders are skipped, and what ``datasets`` writes about the rows. ``split``: only the files of this
    split, judged by their names as the hub does (``train-00000-of-00002.parquet``, ``test/rows.jsonl``); ``all``: every
    file.

    Raises:
        UserError: no file, none of a known kind, or several splits and none named.
    """
    place = Path(path)
    if place.is_file():
        if not place.name.endswith(SUFFIXES):
            raise UserError(f"{path}: unknown kind of file; allowed: {', '.join(SUFFIXES)}")
        if split not in (None, EVERY_SPLIT) and not place.name.endswith((".json", ".json.gz")):
            raise UserError(f"{path}: split {split!r}, but it is one file; a split is named for folders and JSON files")
        return [place]
    if place.is_dir():
        saved = _saved(place, split)
        if saved is not None:
            return saved
        found = place.rglob("*")
    elif any(character in path for character in "*?["):
        found = Path(place.anchor).glob(str(place.relative_to(place.anchor)))
    else:
        raise UserError(f"{path}: no such file")
    files = sorted(
        file
        for file in found
        if file.name.endswith(SUFFIXES) and file.name not in _ABOUT and not _hidden(file, place) and file.is_file()
    )
    if not files:
        raise UserError(f"{path}: no data file there (looked for {', '.join(SUFFIXES)})")
    return _of_split(path, files, [_split_of(file, place) for file in files], split)


def _of_split(path: str, files: Sequence[Path], splits: Sequence[str | None], split: str | None) -> list[Path]:
    named = Counter(name for name in splits if name is not None)
    what = ", ".join(f"{name} ({number_of(count, 'file')})" for name, count in named.items()) or "no split by name"
    if split is None and len(named) > 1:
        raise UserError(f"{path}: holds several splits: {what}; name one with split, such as split: {min(named)}")
    if split in (None, EVERY_SPLIT):
        return [*files]
    found = [file for file, name in zip(files, splits, strict=True) if name == split]
    if not found:
        raise UserError(f"{path}: no split {split!r}; it has {what}")
    return found


def _split_of(file: Path, root: Path) -> str | None:
    """Return the split that the file's name, or else the nearest folder, names: ``train_prefs``, ``test``."""
    inner = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    shard = _SHARD.match(file.name.lower())
    if shard is not None and _WORD.match(shard["split"]):
        return SPLITS.get(shard["split"], shard["split"])
    words = _WORD.findall(inner.as_posix().lower())
    return SPLITS[words[-1]] if words else None


def _hidden(file: Path, folder: Path) -> bool:
    inner = file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)
    return any(part.startswith(".") for part in inner.parts)


# ---------------------------------------------------------------- folders that ``datasets`` saved


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` saved a data set, or several splits, in this folder."""
    return any((folder / name).is_file() for name in (STATE, PARTS))


def _saved(folder: Path, split: str | None) -> list[Path] | None:
    """Return the files of a folder that ``datasets`` saved, in their order; None if it did not save it."""
    if (folder / PARTS).is_file():
        parts = [str(name) for name in _listed(folder / PARTS, "splits")]
        if not parts:
            raise UserError(f"{folder}: {PARTS} names no splits")
        if split is None and len(parts) > 1:
            raise UserError(f"{folder}: holds several splits: {', '.join(parts)}; name one with split")
        if split not in (None, EVERY_SPLIT, *parts):
            raise UserError(f"{folder}: no split {split!r}; it has {', '.join(parts)}")
        wanted = parts if split in (None, EVERY_SPLIT) else [str(split)]
        return [file for name in wanted for file in _part(folder, name)]
    if not (folder / STATE).is_file():
        return None
    if split not in (None, EVERY_SPLIT):
        require_split(folder, _read(folder / STATE).get("_split"), split)
    shards = [shard for shard in _listed(folder / STATE, "_data_files") if isinstance(shard, dict)]
    files = [folder / Path(str(shard.get("filename"))).name for shard in shards]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None or not files:
        raise UserError(f"{folder}: {STATE} names {missing.name if missing else 'no files'}, which are not there")
    return files


def _part(folder: Path, name: str) -> list[Path]:
    """Return the files of one split of a folder that ``datasets`` saved."""
    files = _saved(folder / Path(name).name, None)
    if files is None:
        raise UserError(f"{folder}: {PARTS} names {name}, which is not there, or not saved by datasets")
    return files


def require_split(place: str | Path, saved: object, split: str | None) -> None:
    """Raise ``UserError`` if the data set saved in ``place``, of the split ``saved`` or of none, is not ``split``."""
    if saved != split:
        what = (
            f"it is one data set, of split {saved!r}" if isinstance(saved, str) else "it is one data set, of no split"
        )
        raise UserError(f"{place}: no split {split!r}; {what}")


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
    return found if isinstance(found, dict) else {}


def _listed(file: Path, name: str) -> list[object]:
    listed = _read(file).get(name)
    if not isinstance(listed, list):
        raise UserError(f"{file}: has no list {name}")
    return listed


def require_content(file: Path) -> None:
    """Raise ``UserError`` if the file only points to its content, as git-lfs and git-annex leave it."""
    with file.open("rb") as stream:
        beginning = stream.read(64)
    for mark, command in _POINTERS.items():
        if beginning.startswith(mark):
            raise UserError(f"{file}: a pointer to the data, not the data; fetch it with: {command}")
