"""Named losses: the files of configs/loss/, and how a section ``loss`` becomes one composition. Torch-free.

A setting is given by its path (``margin.gamma``) or, where only one component of the preset has a
setting of that name, by the name alone (``gamma``).
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from pipeline.config.loss.composition import Composition

_Tree = dict[str, Any]

# configs/ is next to pipeline/ both in a checkout and in an installed package.
PRESETS = Path(__file__).parents[3] / "configs" / "loss"

DOCUMENTATION = ("summary", "formula", "citation", "family", "identity_with", "departures")
SCALARS = ("exponent", "aggregate", "length_power", "kl", "kl_stop_chosen", "weight", "unscale", "nll", "nll_aggregate")

# Names that several published papers use, with their possible meanings.
AMBIGUOUS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "d2po": (
            "d2po_decay (temporal decay, arXiv:2502.14340)",
            "d2po_discriminator (discriminator-guided, arXiv:2405.01511)",
        ),
        "apo": (
            "apo_accelerated (accelerated, arXiv:2410.06293)",
            "apo_zero or apo_down (anchored, arXiv:2408.06266)",
        ),
        "rpo": (
            "rpo_sq, rpo_bwd, rpo_fwd, rpo_sqloo, rpo_list_bwd or rpo_list_fwd (reward-aware, arXiv:2502.00203)",
            "dpo_sft (regularised, arXiv:2405.16436; iterative reasoning, arXiv:2404.19733)",
        ),
        "vpo": (
            "vpo_online or vpo_offline (value-incentivised, arXiv:2405.19320); two other methods share this name, "
            "and neither is here",
        ),
        "sppo_apa": ("nothing here: advantage-induced policy alignment (arXiv:2306.02231) is not a loss on pairs",),
        "hypo": ("nothing here; hpo is the hybrid of arXiv:2405.17956",),
        "upo": ("hpo (hybrid, arXiv:2405.17956, later called UPO)",),
        "mallowspo": ("mallows_theta or mallows_phi (arXiv:2405.14953)",),
        "tdpo": ("tdpo1 or tdpo2 (token-level, arXiv:2404.11999)",),
        "gpo": ("gpo_exponential, gpo_truncated_quadratic or gpo_savage (arXiv:2402.05749), or dpo, ipo, slic",),
        "hinge": ("slic (arXiv:2305.10425, no reference)", "rso_hinge (arXiv:2309.06657, with one)"),
        "rdpo": ("r_dpo (length-regularised, arXiv:2403.19159)", "robust_dpo (arXiv:2403.00409)"),
    }
)


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def resolve(name: str, overrides: Mapping[str, Any]) -> _Tree:
    """The plain form of preset ``name`` with ``overrides``, for the schema to validate.

    Raises:
        ValueError: no such preset, an ambiguous name, or an override that names no setting.
    """
    plain = name.lower().replace("-", "_")
    if plain in AMBIGUOUS:
        raise ValueError(f"preset: {name!r} is ambiguous; it could mean:\n    " + "\n    ".join(AMBIGUOUS[plain]))
    if name not in preset_names():
        raise ValueError(f"preset: {name!r} is not a loss; one of {', '.join(preset_names())}")
    tree: _Tree = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    composition = Composition.model_validate(tree)
    for key, value in overrides.items():
        _override(name, tree, composition, key, value)
    return tree


def settings_of(composition: Composition) -> dict[str, Any]:
    """Settings of the components in use, by path, with their values: β first, including switches and choices."""
    found: dict[str, Any] = {"beta": composition.beta}
    plain = composition.model_dump()
    for field in Composition.model_fields:
        if field in DOCUMENTATION or field in found:
            continue
        value = plain[field]
        if isinstance(value, dict):
            found |= {f"{field}.{leaf}": setting for leaf, setting in value.items() if leaf != "kind"}
        elif field == "terms":
            for number, term in enumerate(value):
                found |= {f"terms.{number}.{leaf}": term[leaf] for leaf in _numbers_of(term)}
        elif field in SCALARS and value != Composition.model_fields[field].default:
            found[field] = value
    if composition.pair_weight != "none":
        found["pair_weight_cap"] = composition.pair_weight_cap
    return found


def _override(name: str, tree: _Tree, composition: Composition, key: str, value: Any) -> None:
    if key == "reference_free":
        _drop_reference(name, tree, composition, value)
    elif key in Composition.model_fields and key not in DOCUMENTATION:
        tree[key] = _laid_over(tree.get(key), value)
    else:
        composition = _as_overridden(tree, composition)
        paths = [path for path in _paths(composition) if path == key or path.rpartition(".")[2] == key]
        if len(paths) != 1:
            known = ", ".join(sorted(_paths(composition) | {"beta", "nll"}))
            why = (
                f"could be any of {', '.join(sorted(paths))}: give the path"
                if paths
                else f"is not a setting of {name}: {known}"
            )
            raise ValueError(f"{key}: {why}")
        component, _, leaf = paths[0].partition(".")
        if component == "terms":
            number, _, leaf = leaf.partition(".")
            tree["terms"] = [{**t, leaf: value} if n == int(number) else t for n, t in enumerate(tree["terms"])]
            return
        whole = tree.get(component)
        tree[component] = {**(whole if isinstance(whole, dict) else {"kind": whole}), leaf: value}


def _as_overridden(tree: _Tree, preset: Composition) -> Composition:
    """The composition that ``tree`` holds so far, perhaps with components of other kinds; ``preset`` if incomplete."""
    try:
        return Composition.model_validate(tree)
    except ValidationError:
        return preset


def _paths(composition: Composition) -> set[str]:
    plain = composition.model_dump()
    components = {field: part for field, part in plain.items() if isinstance(part, dict)}
    of_terms = {f"terms.{n}.{leaf}" for n, term in enumerate(plain["terms"]) for leaf in _numbers_of(term)}
    return of_terms | {f"{field}.{leaf}" for field, part in components.items() for leaf in part if leaf != "kind"}


def _numbers_of(term: _Tree) -> list[str]:
    """The settings of a one-sided term, without the fields that define the loss."""
    return ["coefficient", *(["target"] if isinstance(term["target"], float) and term["target"] != 0 else [])]


def _laid_over(old: Any, new: Any) -> Any:
    """Merge a component's settings over those of the preset, unless they name another kind."""
    if not isinstance(new, dict) or old is None:
        return new
    base = old if isinstance(old, dict) else {"kind": old}
    return {**base, **new} if new.get("kind", base.get("kind")) == base.get("kind") else new


def _drop_reference(name: str, tree: _Tree, composition: Composition, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"reference_free: {value!r}: true or false")
    if not value:
        return
    if composition.prior.kind not in ("none", "reference"):
        raise ValueError(f"reference_free: {name} measures against the prior {composition.prior.kind}, which it needs")
    for what, reads in (
        ("kl", composition.kl > 0),
        ("calibration", composition.calibration is not None),
        ("weights", composition.weights.kind in ("learned", "activation")),
        ("adversary", composition.adversary is not None),
        ("terms", composition.one_sided),
        ("margin", composition.margin.kind == "gap"),
    ):
        if reads:
            raise ValueError(f"reference_free: {name} needs a reference ({what})")
    tree["prior"] = "none"


class NamedComposition(Composition):
    """The config's section ``loss``: a preset of configs/loss/ with settings of its own, or a composition written out.

    A composition written out names a link, terms or a head.
    """

    preset: str = "custom"

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        rest = {key: value for key, value in given.items() if key != "preset"}
        written_out = not {"link", "terms", "head"}.isdisjoint(rest)
        name = given.get("preset", "custom" if written_out else "dpo")
        if name == "custom" or not isinstance(name, str):
            return given
        documented = {key: value for key, value in rest.items() if key not in DOCUMENTATION}
        return {**resolve(name, documented), "preset": name}
