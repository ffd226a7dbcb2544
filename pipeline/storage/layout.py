"""Versions of run folders: which prefloop wrote one, and whether this one can go on with it. Torch-free.

A folder without ``layout.json`` is of 0.1.0, which wrote none.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from pipeline.config import RunConfig, VllmSampler
from pipeline.config.data.sources import AnyData
from pipeline.config.data.user_data import EVERY_SPLIT, FileData
from pipeline.config.labellers.scorers import ClassifierScorer, EnsembleScorer, PairwiseScorer, ScorerSettings
from pipeline.config.policy import EARLIER, Policy, PretrainedPolicy
from pipeline.config.training import UNBALANCED, Training
from pipeline.errors import UserError
from pipeline.storage.atomic import write_json, write_text

# Raised by a change that earlier versions cannot read.
RUN_LAYOUT = 1
LAYOUT_FILE = "layout.json"
# Settings of earlier versions by their dotted path, and where they are now; None: they have no effect any more.
RENAMED: Mapping[str, str | None] = {}
# Settings whose default reads the files of 0.1.0's run folders otherwise than 0.1.0 did, which had no such setting: the
# section, its kind, the setting, and the value that means what 0.1.0 did.
_BEFORE = (
    ("prompts", "file", "split", EVERY_SPLIT),
    ("pairs", "file", "split", EVERY_SPLIT),
    ("chat", "", "bos", EARLIER),
    ("chat", "", "thinking", EARLIER),
    ("training", "", "router_aux_loss_coef", UNBALANCED),
    ("warm_start", "", "router_aux_loss_coef", UNBALANCED),
    ("policy", "pretrained", "dtype", "float32"),
    ("training.lora", "", "lifetime", "round"),
    ("gate", "", "min_length_falling", None),
)
_FIRST = "0.1.0"
_Tree = dict[str, JsonValue]
_Source = TypeVar("_Source", bound=AnyData | None)


@dataclass(frozen=True, slots=True)
class Written:
    """What a run folder says of itself: its layout, and the version of prefloop that last ran it."""

    layout: int = 1
    prefloop: str = _FIRST


def own_version() -> str:
    """Return the version of prefloop that runs."""
    return importlib.metadata.version("prefloop")


def require_known(root: Path) -> Written:
    """Return what the run folder ``root`` says of itself. Raises ``UserError`` for the layout of a later version."""
    file = root / LAYOUT_FILE
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        written = Written(int(plain["layout"]), str(plain["prefloop"])[:40])
    except (FileNotFoundError, NotADirectoryError):
        return Written()
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{file}: cannot be read; restore it from a copy, or remove it if {_FIRST} wrote it") from None
    if written.layout > RUN_LAYOUT:
        raise UserError(
            f"{root}: prefloop {visible_version(written)} wrote this run folder, in layout {written.layout}; this is "
            f"prefloop {own_version()}, which reads layouts up to {RUN_LAYOUT}. Nothing was changed; install the "
            "version that wrote it"
        )
    return written


def visible_version(written: Written) -> str:
    """Return the version in ``written`` without anything that a version does not hold."""
    return "".join(c for c in written.prefloop if c.isascii() and (c.isalnum() or c in ".+-")) or "unknown"


def note_version(root: Path, config_file: Path) -> None:
    """State this version in the run folder ``root``; keep the config of another one as ``config.VERSION.yaml``.

    Call it before the config is written anew.
    """
    written, own = require_known(root), own_version()
    stated = (root / LAYOUT_FILE).exists()
    kept = config_file.with_name(f"config.{visible_version(written)}.yaml")
    if config_file.is_file() and not kept.exists() and (not stated or written.prefloop != own):
        write_text(kept, config_file.read_text(encoding="utf-8"))
    if not stated or written != Written(RUN_LAYOUT, own):
        state_version(root)


def state_version(root: Path) -> None:
    """Write this version, and the layout of its folders, into ``root``."""
    write_json(root / LAYOUT_FILE, {"layout": RUN_LAYOUT, "prefloop": own_version()})


def as_now_called(tree: _Tree, renamed: Mapping[str, str | None] | None = None) -> _Tree:
    """Return a run folder's config ``tree`` in its present form.

    Settings of earlier versions get their present names (``RENAMED``), and those that 0.1.0 did not have the value that
    means what it did (``_BEFORE``): a run folder's config writes every setting that its version had.
    """
    now = deepcopy(tree)
    for old, new in (RENAMED if renamed is None else renamed).items():
        holder, name = _holder(now, old, make=False), old.rpartition(".")[2]
        if holder is None or name not in holder:
            continue
        value = holder.pop(name)
        place = None if new is None else _holder(now, new, make=True)
        if new is not None and place is not None:
            place.setdefault(new.rpartition(".")[2], value)
    for section, kind, name, value in _BEFORE:
        if section not in ("prompts", "pairs") and "policy" not in now:
            continue  # a reward model's config has sections of the same names with other settings
        held = _holder(now, f"{section}.{name}", make=False)
        if isinstance(held, dict) and held.get("kind", kind) == kind:
            held.setdefault(name, value)
    return now


def as_read(begun: AnyData | None, given: _Source) -> _Source:
    """Return the source ``given``; if ``begun`` read every split of its path and ``given`` names none, so does it."""
    if not (isinstance(begun, FileData) and isinstance(given, FileData)):
        return given
    same = begun.split == EVERY_SPLIT and given.split is None and begun.path == given.path
    return given.model_copy(update={"split": EVERY_SPLIT}) if same else given


def as_held(begun: Policy, given: Policy) -> Policy:
    """Return the policy ``given``, held in float32 if ``begun`` was and ``given`` leaves that open."""
    if not (isinstance(begun, PretrainedPolicy) and isinstance(given, PretrainedPolicy)):
        return given
    same = begun.dtype == "float32" and "dtype" not in given.changed
    return given.model_copy(update={"dtype": "float32"}) if same else given


def as_scored(begun: ScorerSettings | None, given: ScorerSettings | None) -> ScorerSettings | None:
    """Return the labeller ``given``, its models in float32 if those of ``begun`` were and ``given`` leaves it open."""
    if isinstance(given, ClassifierScorer | PairwiseScorer) and isinstance(begun, ClassifierScorer | PairwiseScorer):
        same = begun.kind == given.kind and begun.dtype == "float32" and "dtype" not in given.changed
        return given.model_copy(update={"dtype": "float32"}) if same else given
    match begun, given:
        case EnsembleScorer(), EnsembleScorer() if len(begun.members) == len(given.members):
            both = zip(begun.members, given.members, strict=True)
            members = tuple(new.model_copy(update={"scorer": as_scored(old.scorer, new.scorer)}) for old, new in both)
            return given.model_copy(update={"members": members})
    return given


def as_merged(begun: Training, given: Training) -> Training:
    """Return ``given``; if each round of ``begun`` merged its adapter and ``given`` leaves that open, so does it."""
    if begun.lora is None or given.lora is None:
        return given
    same = begun.lora.lifetime == "round" and "lifetime" not in given.lora.changed
    return given.model_copy(update={"lora": given.lora.model_copy(update={"lifetime": "round"})}) if same else given


def as_begun(begun: RunConfig, config: RunConfig) -> RunConfig:
    """Return ``config``, to go on with a run that was begun as ``begun``: what it leaves open stays as it was."""
    sources = {"prompts": (begun.prompts, config.prompts), "pairs": (begun.pairs, config.pairs)}
    update: dict[str, object] = {name: as_read(*both) for name, both in sources.items()}
    earlier = {"bos": begun.chat.bos, "thinking": begun.chat.thinking}
    kept = {name: EARLIER for name, was in earlier.items() if was == EARLIER and name not in config.chat.changed}
    if kept:
        update["chat"] = config.chat.model_copy(update=kept)
    update["policy"] = as_held(begun.policy, config.policy)
    update["scorer"] = as_scored(begun.scorer, config.scorer)
    if begun.gate is not None and config.gate is not None:
        judged: dict[str, object] = {"second": as_scored(begun.gate.second, config.gate.second)}
        if begun.gate.min_length_falling is None and "min_length_falling" not in config.gate.changed:
            judged["min_length_falling"] = None
        update["gate"] = config.gate.model_copy(update=judged)
    update["training"] = training = as_merged(begun.training, config.training)
    trainings = {"training": (begun.training, training), "warm_start": (begun.warm_start, config.warm_start)}
    for name, (old, new) in trainings.items():
        if old is None or new is None or "router_aux_loss_coef" in new.changed:
            continue
        if old.router_aux_loss_coef == UNBALANCED:
            update[name] = new.model_copy(update={"router_aux_loss_coef": UNBALANCED})
    before, engine = begun.sampler, config.sampler
    eager = isinstance(before, VllmSampler) and before.enforce_eager
    if eager and isinstance(engine, VllmSampler) and engine.enforce_eager is None:
        update["sampler"] = engine.model_copy(update={"enforce_eager": True})
    return config.model_copy(update=update)


def _holder(tree: _Tree, path: str, *, make: bool) -> _Tree | None:
    """Return the section that holds the setting at ``path``; None if there is none."""
    node: JsonValue = tree
    for part in path.split(".")[:-1]:
        if not isinstance(node, dict):
            return None
        node = node.setdefault(part, {}) if make else node.get(part)
    return node if isinstance(node, dict) else None
