"""Cache of reference models' values for token ids, keyed by content so that runs share it. Torch-free.

One folder per entry: parquet shards and ``entry.json``. An entry appears by one rename, so it is whole or absent,
however many runs write at once: they write the same, and the first one stays. Any entry may be removed at any time.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from pipeline.errors import RunError
from pipeline.models.weights.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, is_adapter
from pipeline.storage.atomic import sync_folder, write_json
from pipeline.storage.digests import file_sha256
from pipeline.training.batches.examples import Example
from pipeline.types import content_hash

ENTRY = "entry.json"


class DamagedEntryError(RunError):
    """An entry's content differs from what was stored."""


class ReferenceCache:
    """The entries in the folder ``root``, which is created with the first entry."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def fetch(self, key: str, place: Path) -> bool:
        """Copy the entry ``key`` to the new folder ``place``; return whether it exists.

        Raises:
            DamagedEntryError: its files are not those that were stored.
        """
        source = self._root / key
        shutil.rmtree(place, ignore_errors=True)
        if not source.is_dir():
            return False
        try:
            shutil.copytree(source, place)
        except OSError as error:
            if not source.is_dir():
                # Another run has just removed it.
                return False
            raise DamagedEntryError(f"{source}: cannot be read ({error})") from None
        require_stored(place, source)
        return True

    def store(self, key: str, place: Path, about: dict[str, JsonValue]) -> None:
        """Store the shards in the folder ``place`` as the entry ``key``, unless it exists.

        ``about`` describes them for people.
        """
        with self._scratch() as scratch:
            for shard in place.glob("*.parquet"):
                shutil.copyfile(shard, scratch / shard.name)
            write_json(scratch / ENTRY, {**about, "files": _digests(scratch)})
            try:
                scratch.rename(self._root / key)
            except OSError:
                # A rename never replaces a folder that is not empty: another run was first.
                if not (self._root / key).is_dir():
                    raise
            sync_folder(self._root)

    def drop(self, key: str) -> None:
        """Remove the entry ``key`` if it is there."""
        with self._scratch() as scratch:
            try:
                (self._root / key).rename(scratch / key)
            except FileNotFoundError:
                return

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        scratch = self._root / f".partial_{uuid4().hex}"
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def require_stored(place: Path, source: Path) -> None:
    """Raise ``DamagedEntryError`` if ``place``, a copy of ``source``, does not hold the files that were stored."""
    try:
        told = json.loads((place / ENTRY).read_text(encoding="utf-8"))["files"]
        found = _digests(place)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedEntryError(f"{source}: cannot be read ({error})") from None
    if found != told:
        raise DamagedEntryError(f"{source}: the files are not those that were stored")


def entry_key(tokens: str, model: str, dtype: str, entropy: bool) -> str:
    """Return the key of an entry, from everything that its rows depend on.

    Args:
        tokens: from ``tokens_digest``; covers the chat template, which made these tokens.
        model: from ``model_digest``.
        dtype: of matrix products.
        entropy: whether the rows hold entropies too.
    """
    return content_hash(["reference", tokens, model, dtype, entropy], length=32)


def tokens_digest(examples: Iterable[Example]) -> str:
    """Return a hash of the examples' ids and tokens, in order; reads them one at a time."""
    total = hashlib.sha256()
    for example in examples:
        rows: list[Sequence[int]] = [example.prompt_ids, *(c.ids for c in example.continuations)]
        rows += [
            part
            for c in example.continuations
            for row in c.rows
            for part in (row.prompt_ids, row.ids, [*map(int, row.trained)])
        ]
        counts = (len(example.responses), *map(len, rows))
        numbers = [*counts, *(token for row in rows for token in row)]
        total.update(f"{example.id}\n{len(rows)}\n".encode() + struct.pack(f"<{len(numbers)}q", *numbers))
    return total.hexdigest()


def weights_digest(folder: Path) -> str:
    """Return a hash of a model folder's whole config, weights and code: fine-tuned weights have their base's size.

    Of an adapter's folder: of the adapter and of the model under it.
    """
    if is_adapter(folder):
        own = [[name, file_sha256(folder / name)] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
        return content_hash([own, weights_digest(Path(base_of(folder)))], length=64)
    names = ("config.json", "*.safetensors", "*.py")
    files = sorted({file for name in names for file in folder.glob(name)})
    return content_hash([[file.name, file_sha256(file)] for file in files], length=64)


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.glob("*.parquet"))}
