"""The run folder: stage folders that exist only when they are complete. Torch-free.

A stage is written in ``NAME.partial``; its manifest is written last, then one rename makes it
``NAME``. So a stage folder that exists is whole, no matter when a process was killed. Shards inside
a partial folder are renamed into place one by one and survive a kill. A complete stage is never
overwritten: if its key no longer fits, an error names the changed field.
"""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from pipeline.config import RunConfig
from pipeline.config.files import changed_fields, load_settings
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import discard, sync_folder, write_json
from pipeline.storage.layout import as_begun, as_now_called, own_version, require_known, visible_version
from pipeline.storage.manifest import (
    MANIFEST,
    DamagedError,
    Freed,
    Manifest,
    StageKey,
    facts_of,
    plain,
    read_freed,
    read_manifest,
    versions,
)
from pipeline.storage.seals import MARKER, SEALS, read_seconds, require_unchanged, tried
from pipeline.types import content_hash

# Folder inside the partial folder for files that the stage needs only until it is whole.
CHECKPOINTS = "checkpoints"


class RunFolder:
    """``root/config.yaml`` and ``root/round_NNN/STAGE/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def existing(cls, root: Path) -> "RunFolder":
        """Return the run folder ``root``. Raises ``UserError`` if it is none, or one of a later version."""
        run = cls(root)
        if not run.config_file.is_file():
            raise UserError(f"{root}: not a run folder (no config.yaml)")
        require_known(root)
        return run

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """Load the resolved config, also one that an earlier version wrote, and ``overrides`` (``a.b=value``).

        Raises ``UserError``: see ``load_config``; also for a folder of a later version.
        """
        written = require_known(self.root)
        try:
            return load_settings(RunConfig, [self.config_file], overrides, as_now_called)
        except UserError as error:
            if written.prefloop == own_version():
                raise
            wrote = f"prefloop {visible_version(written)} wrote this run folder; this is prefloop {own_version()}"
            raise UserError(f"{error}\n{wrote}") from None

    def carried(self, config: RunConfig) -> RunConfig:
        """Return ``config``, to go on with this folder.

        Splits, BOS, thoughts, router losses, precision, merging and eager engines stay as it had them.
        """
        if not self.config_file.is_file():
            return config
        return as_begun(self.config(), config)

    def stage(self, round_: int, name: str) -> "Stage":
        """Return the stage ``name`` of a round, complete or not."""
        return Stage(name, round_, self.root / f"round_{round_:03d}" / name)

    def rounds(self) -> list[int]:
        """Return the numbers of the rounds that have a folder, ascending."""
        numbers = [path.name.removeprefix("round_") for path in self.root.glob("round_*") if path.is_dir()]
        return sorted(int(number) for number in numbers if number.isdigit())

    def stages(self) -> list["Stage"]:
        """Return the stages that have a folder under their own name, round by round."""
        return [self.stage(round_, name) for round_, name in self._folders() if "." not in name]

    def begun(self) -> list["Stage"]:
        """Return the stages that are being written, or were when a run ended."""
        found = [(round_, name) for round_, name in self._folders() if name.endswith(".partial")]
        return [self.stage(round_, name.removesuffix(".partial")) for round_, name in found]

    def _folders(self) -> list[tuple[int, str]]:
        rounds = [(number, self.root / f"round_{number:03d}") for number in self.rounds()]
        return [(number, path.name) for number, place in rounds for path in sorted(place.iterdir()) if path.is_dir()]


@dataclass(frozen=True)
class Stage:
    """One stage of one round."""

    name: str
    round: int
    folder: Path

    @property
    def title(self) -> str:
        """The stage's name in manifests and messages: ``round_001/samples``."""
        return f"{self.folder.parent.name}/{self.name}"

    @property
    def partial(self) -> Path:
        """The folder where the stage is being written."""
        return self.folder.with_name(f"{self.name}.partial")

    @property
    def redo(self) -> str:
        """Advice for a damaged stage."""
        return f"restore it from a copy, or redo the stage: prefloop run ... --from {self.round}:{self.name}"

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None if the stage is not complete. Raises ``DamagedError``.

        Checks only the names and sizes of files; ``integrity.file_faults`` reads them.
        """
        try:
            manifest = self.manifest_alone()
        except FileNotFoundError:
            if self.folder.exists():
                raise DamagedError(f"{self.folder}: a stage folder without {MANIFEST}; {self.redo}") from None
            return None
        except DamagedError as error:
            raise DamagedError(f"{error}; {self.redo}") from None
        freed = self.freed()
        for name, facts in manifest.files.items():
            file = self.folder / name
            if freed is not None and name in freed.files:
                continue
            if not file.is_file() or file.stat().st_size != facts.get("bytes"):
                raise DamagedError(f"{file}: missing, or its size differs from its manifest's; {self.redo}")
        return manifest

    def manifest_alone(self) -> Manifest:
        """Return the manifest without checking files. Raises ``FileNotFoundError`` or ``DamagedError``."""
        return read_manifest(self.folder / MANIFEST)

    def freed(self) -> Freed | None:
        """Return what was removed from the stage on purpose. Raises ``DamagedError``."""
        return read_freed(self.folder)

    def complete(self, key: StageKey) -> bool:
        """Return whether the stage is complete under ``key``.

        Raises:
            UserError: it is complete under another key.
            DamagedError: it was made from other inputs than the present ones.
        """
        manifest = self.manifest()
        if manifest is None:
            return False
        if manifest.key == key.digest:
            for title, digest in self.seals(key).items():
                if manifest.made_from.get(title) != digest:
                    raise DamagedError(f"{self.folder}: was made from another {title} than is there; {self.redo}")
            return True
        changes = changed_fields(manifest.config, key.config)
        changes += [f"seed: {manifest.seed} -> {key.seed}"] if manifest.seed != key.seed else []
        changes += [f"input {name}" for name in key.inputs if manifest.inputs.get(name) != key.inputs[name]]
        raise UserError(f"{self.folder} was made with other settings; nothing was changed:\n  " + "\n  ".join(changes))

    def seals(self, key: StageKey) -> dict[str, str]:
        """Return the SHA-256 of the manifests of ``key``'s inputs, for those that exist."""
        files = {title: self.folder.parent.parent / title / MANIFEST for title in key.inputs}
        return {title: read_manifest(file).sha256 for title, file in files.items() if file.exists()}

    def require(self) -> Manifest:
        """Return the manifest of a stage that must already be complete, else raise ``RunError``."""
        manifest = self.manifest()
        if manifest is None:
            raise RunError(f"{self.folder}: this stage is not complete, but a later one needs it")
        return manifest

    def begin(self, key: StageKey, by_shard: Collection[str] = ()) -> "StageWriter":
        """Open the partial folder; keep what an earlier try with the same key left in it.

        ``by_shard``: titles of inputs that may still be made. The stage itself checks of which of their shards its own
        are, so what it has made stays, whether they were complete or not.
        """
        marker, made_from = self.partial / MARKER, self.seals(key)
        whole = {title: sha256 for title, sha256 in made_from.items() if title not in by_shard}
        goes_by = content_hash([key.digest, whole])
        if self.partial.is_symlink():
            self.partial.unlink()
        elif self.partial.exists() and tried(self.partial) not in (goes_by, content_hash([key.digest, made_from])):
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"key": goes_by, "seconds": read_seconds(self.partial)})
        # Files that a kill left half written or half removed do not belong to the stage, nor does a leftover manifest.
        # Nor do links: nothing is written through them.
        (self.partial / MANIFEST).unlink(missing_ok=True)
        for left in [path for path in self.partial.rglob("*") if path.suffix == ".tmp" or path.is_symlink()]:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
        return StageWriter(self, key, made_from, goes_by)


class StageWriter:
    """Files go to ``folder``; ``commit`` turns them into the stage."""

    def __init__(self, stage: Stage, key: StageKey, made_from: dict[str, str], tried: str) -> None:
        """``tried``: hash that a later try must match to continue from the files here."""
        self.stage = stage
        self.key = key
        self._made_from = made_from
        self._tried = tried
        self.folder = stage.partial
        self._marker = self.folder / MARKER
        self._earlier = read_seconds(self.folder)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time spent on the stage in seconds, including earlier tries (up to their last ``note_time``)."""
        return self._earlier + time.monotonic() - self._started

    def note_time(self) -> None:
        """Record the time spent so far, so that a kill does not lose it."""
        write_json(self._marker, {"key": self._tried, "seconds": self.seconds})

    def commit(self, rows: int, metrics: Mapping[str, JsonValue]) -> Manifest:
        """Write the manifest and rename the folder into place, without its checkpoints.

        Checkpoints go last: reading large files takes minutes, and a kill in that time must not lose the training.

        Raises:
            DamagedError: a file is not as it was sealed.
        """
        checkpoints = self.folder / CHECKPOINTS
        aside = {self._marker, checkpoints, *checkpoints.rglob("*"), *self.folder.rglob(SEALS)}
        files = facts_of(self.folder, sorted(path for path in self.folder.rglob("*") if path not in aside))
        require_unchanged(self.folder, files)
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
            files=files,
            versions=versions(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            # Inputs that were read by shard are complete only now.
            made_from={**self.stage.seals(self.key), **self._made_from},
        ).sealed()
        write_json(self.folder / MANIFEST, plain(manifest))
        discard(checkpoints)
        # After the manifest, which also identifies this folder.
        self._marker.unlink()
        self.folder.rename(self.stage.folder)
        sync_folder(self.stage.folder.parent)
        # Seals that a kill leaves behind are hidden files, and hold no more than the manifest.
        for seals in [*self.stage.folder.rglob(SEALS)]:
            seals.unlink()
        return manifest
