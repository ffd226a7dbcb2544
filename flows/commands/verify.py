"""``prefloop verify``: check every file and manifest of a run by its SHA-256, and the chain of keys."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.storage.integrity import BASE_FILES, POINTED_FILES, Damage, file_faults
from pipeline.storage.manifest import MANIFEST, DamagedError, Manifest, StageKey
from pipeline.storage.run_folder import RunFolder, Stage
from pipeline.types.counts import number_of


@dataclass(frozen=True, slots=True)
class Verified:
    """The findings for one stage.

    Attributes:
        state: ``intact``, ``damaged``, or ``freed`` if files were removed on purpose and the rest is intact.
        files, bytes: how many were read.
    """

    stage: str
    state: str
    files: int
    bytes: int
    faults: list[Damage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings for a run; ``begun``: stages that are not complete."""

    root: Path
    stages: list[Verified]
    begun: list[str]
    seconds: float

    @property
    def faults(self) -> list[Damage]:
        """The faults of all stages."""
        return [fault for stage in self.stages for fault in stage.faults]

    def plain(self) -> dict[str, Any]:
        """Return the findings as plain JSON."""
        stages = [asdict(stage) for stage in self.stages]
        for stage in stages:
            stage["faults"] = [{"file": str(fault["file"]), "fault": fault["what"]} for fault in stage["faults"]]
        return {
            "run": str(self.root),
            "intact": not self.faults,
            "files": sum(stage.files for stage in self.stages),
            "bytes": sum(stage.bytes for stage in self.stages),
            "seconds": round(self.seconds, 3),
            "stages": stages,
            "begun": self.begun,
        }


def verify_run(root: Path) -> Verification:
    """Read all of the run folder ``root``; writes nothing. Raises ``UserError`` if it is not a run folder."""
    run, started = RunFolder.existing(root), time.monotonic()
    run.config()
    manifests: dict[str, Manifest] = {}
    found: dict[str, Verified] = {}
    for stage in run.stages():
        try:
            manifest = stage.manifest_alone()
        except (DamagedError, FileNotFoundError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else str(error).partition(": ")[2]
            found[stage.title] = Verified(
                stage.title, "damaged", 0, 0, [Damage(stage.title, stage.folder / MANIFEST, what)]
            )
            continue
        manifests[stage.title] = manifest
        found[stage.title] = _files(stage, manifest)
    for title, manifest in manifests.items():
        found[title].faults.extend(_chain(run, title, manifest, manifests, set(found)))
    stages = [_judged(one) for one in found.values()]
    return Verification(root, stages, [stage.title for stage in run.begun()], time.monotonic() - started)


def _files(stage: Stage, manifest: Manifest) -> Verified:
    try:
        freed = stage.freed()
        faults = [*file_faults(stage, manifest, reread=True)]
    except DamagedError as error:
        file, _, what = str(error).partition(": ")
        return Verified(stage.title, "damaged", 0, 0, [Damage(stage.title, Path(file), what)])
    outside = [manifest.metrics.get(name) for name in (POINTED_FILES, BASE_FILES)]
    told = [*manifest.files.values(), *(facts for one in outside if isinstance(one, dict) for facts in one.values())]
    removed = {} if freed is None else freed.files
    sizes = [int(str(facts["bytes"])) for facts in told if isinstance(facts, dict)]
    size = sum(sizes) - sum(removed.values())
    return Verified(stage.title, "intact" if freed is None else "freed", len(sizes) - len(removed), size, faults)


def _chain(
    run: RunFolder, title: str, manifest: Manifest, manifests: dict[str, Manifest], there: set[str]
) -> list[Damage]:
    """Check that the stage matches its manifest, and was made from the inputs on disk."""
    file = run.root / title / MANIFEST
    whats = []
    if title != f"round_{manifest.round:03d}/{manifest.stage}":
        whats.append(f"is the manifest of round {manifest.round}, {manifest.stage}")
    if StageKey(manifest.config, manifest.inputs, manifest.seed).digest != manifest.key:
        whats.append("its key does not match its settings and inputs")
    for name, key in manifest.inputs.items():
        other = manifests.get(name)
        if name not in there:
            whats.append(f"was made from {name}, which is missing")
        elif other is not None and (other.key != key or other.sha256 != manifest.made_from.get(name)):
            whats.append(f"was made from another {name} than is there")
    return [Damage(title, file, what) for what in whats]


def _judged(one: Verified) -> Verified:
    return Verified(one.stage, "damaged" if one.faults else one.state, one.files, one.bytes, one.faults)


def print_verification(found: Verification, as_json: bool) -> None:
    """Print a table, then every damaged file and how to fix it; or all of it as JSON."""
    if as_json:
        print(json.dumps(found.plain(), indent=1, ensure_ascii=False))
        return
    console = Console() if Console().is_terminal else Console(width=120)
    table = Table(title=found.root.name, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading, side in (("stage", "left"), ("files", "right"), ("MiB", "right"), ("", "left")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for stage in found.stages:
        table.add_row(stage.stage, str(stage.files), f"{stage.bytes / 2**20:.2f}", stage.state)
    for title in found.begun:
        table.add_row(title, "", "", "begun")
    console.print(table)
    for fault in found.faults:
        print(f"damaged: {fault}")
    for first in [stage.stage for stage in found.stages if stage.faults][:1]:
        round_, _, name = first.removeprefix("round_").partition("/")
        print(f"restore these files from a copy, or redo: prefloop run ... --from {int(round_)}:{name}")
    size, files = sum(stage.bytes for stage in found.stages), sum(stage.files for stage in found.stages)
    print(f"{number_of(files, 'file')}, {size / 2**20:.1f} MiB read in {found.seconds:.1f} s: ", end="")
    print(number_of(len(found.faults), "fault") if found.faults else "all as they were written")
