"""``prefloop export``: write a round's policy to a folder, with its model card. Torch-free."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flows.report.gather import round_facts
from flows.report.model_card import card
from flows.stages.context import Context
from pipeline.config import PretrainedPolicy, RunConfig
from pipeline.errors import RunError, UserError
from pipeline.models.weights.adapter_folder import ADAPTER_CONFIG, base_of, is_adapter, write_base
from pipeline.storage.atomic import sync_folder, write_text
from pipeline.storage.digests import file_sha256
from pipeline.storage.integrity import POINTED_FILES, require_intact
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.run_folder import RunFolder, Stage

CARD = "README.md"
# Weights, their index, tokenizer, template, generation config. The other files of a policy's folder (probe, steps,
# heads, optimiser) are only for the run.
EXPORTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
# Folders of a policy that makes images.
DIFFUSERS = ("unet", "transformer", "scheduler", "vae", "tokenizer*", "text_encoder*")
KEPT_BACK = {MANIFEST, "probe.json", ADAPTER_CONFIG}


def export_policy(root: Path, out: Path, round_: int | None, *, adapter: bool = False) -> str:
    """Write the policy of ``round_`` to the folder ``out``, with its card; return a one-line summary.

    ``out`` appears only when it is complete. Without ``round_``: the gate's best round, else the newest. An adapter is
    merged into the weights under it, in the precision that the run holds them in, but never into quantised ones: then
    into those that they were made from. With ``adapter``, it is written alone.

    Raises:
        UserError: no such run or round, no adapter, or ``out`` is not empty.
        RunError: a file of the policy does not match its manifest.
    """
    run = RunFolder.existing(root)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; export writes to a new folder")
    config = run.config()
    number = exported_round(run, config) if round_ is None else round_
    if not 0 <= number <= config.rounds or run.stage(number, "policy").manifest() is None:
        made = ", ".join(map(str, _rounds(run))) or "none"
        raise UserError(f"--round: {root} has no policy of round {number} yet; rounds that have one: {made}")
    _write(run, config, number, out, adapter=adapter)
    return f"round {number} of {config.name}: {out}"


def _rounds(run: RunFolder) -> list[int]:
    return [number for number in run.rounds() if run.stage(number, "policy").manifest() is not None]


def exported_round(run: RunFolder, config: RunConfig) -> int:
    """Return the gate's best round, else the newest that has a policy. Raises ``UserError`` if none has."""
    made = _rounds(run)
    if not made:
        raise UserError(f"{run.root}: no round has a policy yet")
    for number in reversed(made):
        gate = round_facts(run, config, number, comparisons=0).gate
        if gate is not None and gate.best_round in made:
            return int(gate.best_round)
    return made[-1]


def _write(run: RunFolder, config: RunConfig, round_: int, out: Path, *, adapter: bool) -> None:
    stage = run.stage(round_, "policy")
    source, manifest = Context(run, config).policy_path(round_), stage.require()
    if adapter and not is_adapter(source):
        raise UserError(f"--adapter: the policy of round {round_} is a whole model; allowed: --merged, the default")
    files = _image_files(source) if config.modality == "image" else _files(source, config)
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"--round: the weights of round {round_} were removed (see `prefloop verify`)")
    pointed = manifest.metrics.get(POINTED_FILES)
    known = manifest.files if source == stage.folder else pointed if isinstance(pointed, dict) else {}
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            if is_adapter(source) and not adapter:
                _merge(Context(run, config), stage, source, folder)
            else:
                for file in files:
                    _copy(file, folder, str(file.relative_to(source)), known)
            if adapter:
                write_base(folder, _named_base(config, source))
            write_text(folder / CARD, card(run, config, round_))
            sync_folder(folder)
            folder.rename(out.absolute())
            sync_folder(out.absolute().parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from None


def _merge(context: Context, stage: Stage, source: Path, folder: Path) -> None:
    require_intact(stage)
    if context.config.modality == "image":
        # Runs of text need no diffusers.
        from pipeline.images.image_adapter import merged_network
        from pipeline.images.image_folder import load_image_policy, save_image_policy

        policy = load_image_policy(source, encoders="none")
        save_image_policy(policy.with_network(merged_network(policy.network)), folder)
        return
    from pipeline.models.policy import write_merged

    dtype = context.held.dtype
    write_merged(str(source), folder, trust_remote_code=context.config.trusts_policy, dtype=dtype)


def _named_base(config: RunConfig, source: Path) -> str:
    """The model under an exported adapter: the user's name for it, or the folder that the run made."""
    policy, base = config.policy, Path(base_of(source))
    if isinstance(policy, PretrainedPolicy) and config.warm_start is None:
        return str(Path(policy.path).absolute()) if Path(policy.path).is_dir() else policy.path
    return str(base.absolute())


def _files(source: Path, config: RunConfig) -> list[Path]:
    # Copy code that ships with a model only if the config trusts it.
    patterns = (*EXPORTED, "*.py") if config.trusts_policy else EXPORTED
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    kept_back = KEPT_BACK - ({ADAPTER_CONFIG} if is_adapter(source) else set())
    return sorted(file for file in found if file.name not in kept_back)


def _image_files(source: Path) -> list[Path]:
    """Files of a policy in diffusers' layout, or of its adapter."""
    if is_adapter(source):
        return sorted(file for file in source.glob("adapter_*") if file.is_file())
    found = [file for place in DIFFUSERS for file in source.glob(f"{place}/*") if file.is_file()]
    return sorted([source / "model_index.json", *found])


def _copy(file: Path, folder: Path, name: str, known: Mapping[str, object]) -> None:
    copy = folder / name
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, copy)
    with copy.open("rb") as written:
        os.fsync(written.fileno())
    facts = known.get(name)
    if not isinstance(facts, dict) or facts.get("sha256") != file_sha256(copy):
        raise RunError(f"{file}: does not match its manifest (SHA-256); nothing was exported")
