"""``prefloop export``: write a round's policy to a folder, with its model card. Torch-free."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flows.report.gather import round_facts
from flows.report.model_card import card
from flows.stages.context import Context
from pipeline.config import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import sync_folder, write_text
from pipeline.storage.digests import file_sha256
from pipeline.storage.integrity import POINTED_FILES
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.run_folder import RunFolder

CARD = "README.md"
# Weights, their index, tokenizer, template, generation config. The other files of a policy's folder (probe, steps,
# heads, optimiser) are only for the run.
EXPORTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
KEPT_BACK = {MANIFEST, "probe.json", "adapter_config.json"}


def export_policy(root: Path, out: Path, round_: int | None) -> str:
    """Write the policy of ``round_`` to the folder ``out``, with its card; return a one-line summary.

    ``out`` appears only when it is complete. Without ``round_``: the gate's best round, else the newest. Adapters are
    already merged: every round merges its own.

    Raises:
        UserError: no such run or round, or ``out`` is not empty.
        RunError: a file of the policy does not match its manifest.
    """
    run = RunFolder.existing(root)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; export writes to a new folder")
    config = run.config()
    number = _best_round(run, config) if round_ is None else round_
    if not 0 <= number <= config.rounds or run.stage(number, "policy").manifest() is None:
        made = ", ".join(map(str, _rounds(run))) or "none"
        raise UserError(f"--round: {root} has no policy of round {number} yet; rounds that have one: {made}")
    _write(run, config, number, out)
    return f"round {number} of {config.name}: {out}"


def _rounds(run: RunFolder) -> list[int]:
    return [number for number in run.rounds() if run.stage(number, "policy").manifest() is not None]


def _best_round(run: RunFolder, config: RunConfig) -> int:
    made = _rounds(run)
    if not made:
        raise UserError(f"{run.root}: no round has a policy yet")
    for number in reversed(made):
        gate = round_facts(run, config, number, comparisons=0).gate
        if gate is not None and gate.best_round in made:
            return int(gate.best_round)
    return made[-1]


def _write(run: RunFolder, config: RunConfig, round_: int, out: Path) -> None:
    stage = run.stage(round_, "policy")
    source, manifest = Context(run, config).policy_path(round_), stage.require()
    if not any(source.glob("*.safetensors")):
        raise UserError(f"--round: the weights of round {round_} were removed (see `prefloop verify`)")
    pointed = manifest.metrics.get(POINTED_FILES)
    known = manifest.files if source == stage.folder else pointed if isinstance(pointed, dict) else {}
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            for file in _files(source, config):
                _copy(file, folder / file.name, known)
            write_text(folder / CARD, card(run, config, round_))
            sync_folder(folder)
            folder.rename(out.absolute())
            sync_folder(out.absolute().parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from None


def _files(source: Path, config: RunConfig) -> list[Path]:
    # Copy code that ships with a model only if the config trusts it.
    patterns = (*EXPORTED, "*.py") if config.trusts_policy else EXPORTED
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    return sorted(file for file in found if file.name not in KEPT_BACK)


def _copy(file: Path, copy: Path, known: Mapping[str, object]) -> None:
    shutil.copyfile(file, copy)
    with copy.open("rb") as written:
        os.fsync(written.fileno())
    facts = known.get(file.name)
    if not isinstance(facts, dict) or facts.get("sha256") != file_sha256(copy):
        raise RunError(f"{file}: does not match its manifest (SHA-256); nothing was exported")
