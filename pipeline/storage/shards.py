"""Which files tensors are split into: at most 5 GB each, hashed, written and read side by side. Torch-free.

What fits in one file is in one, under the given name. Larger ones are NAME-00001-of-00003.safetensors and so on, as
transformers names them.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

# For transformers, and the same in bytes.
SHARD_SIZE, SHARD_BYTES = "5GB", 5 * 1000**3


def planned_shards(file: Path, sizes: Mapping[str, int]) -> list[tuple[Path, list[str]]]:
    """Return the files for tensors of so many bytes, in their order, and the names in each; none is split."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return [(file, groups[0])]
    names = (f"{file.stem}-{n:05d}-of-{len(groups):05d}{file.suffix}" for n in range(1, len(groups) + 1))
    return [(file.with_name(name), group) for name, group in zip(names, groups, strict=True)]


def shards_of(file: Path) -> list[Path]:
    """Return ``file`` or its shards, whichever exist, sorted; empty if not all of them are there."""
    if file.is_file():
        return [file]
    shard = re.compile(re.escape(file.stem) + r"-(\d{5})-of-(\d{5})" + re.escape(file.suffix))
    names = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else []
    found = [match for name in names if (match := shard.fullmatch(name))]
    whole = [int(match[1]) for match in found] == [*range(1, len(found) + 1)]
    return [file.with_name(match[0]) for match in found] if whole and {int(m[2]) for m in found} <= {len(found)} else []


def remove_shards(file: Path) -> None:
    """Remove ``file`` and all its shards, also of a set that is not whole."""
    for old in (file, *file.parent.glob(f"{file.stem}-?????-of-?????{file.suffix}")):
        old.unlink(missing_ok=True)


def copy_shards(file: Path, to: Path) -> None:
    """Copy ``file``, or its shards, to the place ``to``."""
    remove_shards(to)
    for one in shards_of(file):
        shutil.copyfile(one, to.with_name(to.stem + one.name.removeprefix(file.stem)))
