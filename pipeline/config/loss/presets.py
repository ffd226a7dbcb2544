"""Named losses: the files of configs/loss/, and how a section ``loss`` becomes one composition. Torch-free.

A setting is given by its path (``margin.gamma``, ``sum.0.beta``) or, where only one component of the preset has a
setting of that name, by the name alone (``gamma``).
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from pipeline.config.loss.composition import Composition
from pipeline.config.loss.formula import Formula
from pipeline.errors import nearest

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
        "sppo_apa": ("apa (advantage-induced policy alignment, arXiv:2306.02231), which its authors' code calls SPPO",),
        "hypo": ("nothing here; hpo is the hybrid of arXiv:2405.17956",),
        "upo": ("hpo (hybrid, arXiv:2405.17956, later called UPO)",),
        "mallowspo": ("mallows_theta or mallows_phi (arXiv:2405.14953)",),
        "tdpo": ("tdpo1 or tdpo2 (token-level, arXiv:2404.11999)",),
        "gpo": ("gpo_exponential, gpo_truncated_quadratic or gpo_savage (arXiv:2402.05749), or dpo, ipo, slic",),
        "hinge": ("slic (arXiv:2305.10425, no reference)", "rso_hinge (arXiv:2309.06657, with one)"),
        "spo": (
            "nothing here: soft preference optimization (arXiv:2405.00747), self-play of a minimaximalist "
            "(arXiv:2401.04056) and step-aware preference optimization of images share this name; sppo is "
            "the self-play that is here",
        ),
        "sdpo": (
            "nothing here: segment-level DPO of conversations, stepwise diffusion policy optimization and "
            "safeguarded DPO of images (arXiv:2511.03317) share this name",
        ),
        "dspo": ("nothing here: the methods of this name train image models by their scores, or by semantics",),
        "nash_md": (
            "nothing here as a policy gradient (arXiv:2312.00886); ipo with sampling.mixture is its form as a "
            "regression, IPO-MD (arXiv:2403.08635)",
            "inpo, egpo or ipo_soft (games between policies, arXiv:2407.00617, arXiv:2503.08942)",
        ),
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
    names = preset_names()
    if name not in names:
        meant = nearest(plain, names)
        raise ValueError(f"preset: {name!r} is not a loss{meant}; 'prefloop losses' lists all {len(names)}")
    tree = _plain_preset(name)
    composition = Composition.model_validate(with_parts(tree))
    for key, value in overrides.items():
        _override(name, tree, composition, key, value)
    return with_parts(tree)


def with_parts(tree: _Tree) -> _Tree:
    """``tree`` with each part of its ``sum`` as a ``WeightedPart`` has it: all settings of its preset written out.

    Raises:
        ValueError: a part is itself a sum, or reads other data than the first.
    """
    parts = tree.get("sum")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
        return tree
    found = [_with_settings(place, dict(part)) for place, part in enumerate(parts)]
    lists = ["head" in part["settings"] and part["settings"]["head"] is not None for part in found]
    if len({*lists}) > 1:
        whole = {name: Composition.model_validate(resolve(name, {})) for name in preset_names()}
        of_lists = ", ".join(name for name, loss in whole.items() if loss.head is not None)
        others = ", ".join(name for name, loss in whole.items() if loss.head is None and not loss.sum)
        raise ValueError(
            f"sum: {found[0]['preset']} and {found[lists.index(not lists[0])]['preset']} read different data. Losses "
            f"that may be summed:\n    over K responses: {of_lists}\n    over pairs: {others}"
        )
    return {**tree, "sum": found}


def _with_settings(place: int, part: _Tree) -> _Tree:
    own: _Tree = {name: part.pop(name) for name in ("preset", "weight", "settings") if name in part}
    given = own.get("settings", {})
    settings = {**given, **part} if isinstance(given, dict) else part
    name = _preset_of(own.get("preset"), settings)
    if not isinstance(name, str):
        raise ValueError(f"sum.{place}.preset: {name!r}: the name of a loss")
    if "sum" in settings or (name in preset_names() and "sum" in _plain_preset(name)):
        raise ValueError(f"sum.{place}.preset: {name} is itself a weighted sum; name its parts instead")
    try:
        settings = settings if name == "custom" else resolve(name, _undocumented(settings))
    except ValueError as error:
        raise ValueError(f"sum.{place}.{error}") from None
    return {**own, "preset": name, "settings": settings}


def _plain_preset(name: str) -> _Tree:
    tree: _Tree = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return tree


def _preset_of(named: Any, settings: _Tree) -> Any:
    written_out = not {"link", "terms", "head", "sum"}.isdisjoint(settings)
    return named or ("custom" if written_out else "dpo")


def _undocumented(settings: _Tree) -> _Tree:
    return {key: value for key, value in settings.items() if key not in DOCUMENTATION}


def settings_of(composition: Formula) -> dict[str, Any]:
    """Settings of the components in use, by path, with their values: β first, including switches and choices."""
    if isinstance(composition, Composition) and composition.sum:
        parts = [(f"sum.{place}", part) for place, part in enumerate(composition.sum)]
        inner = {f"{path}.{name}": value for path, part in parts for name, value in settings_of(part.settings).items()}
        return {f"{path}.weight": part.weight for path, part in parts} | inner
    found: dict[str, Any] = {"beta": composition.beta}
    plain = composition.model_dump()
    for field in Formula.model_fields:
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
    if key == "sum" or key.startswith("sum."):
        _override_part(name, tree, key, value)
    elif key == "reference_free":
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


def _override_part(name: str, tree: _Tree, key: str, value: Any) -> None:
    """Put ``value`` at ``key``: all parts (a list), some of them (a mapping by place), or one setting by its path."""
    _, place, path = [*key.split(".", 2), "", ""][:3]
    if path:
        value = {path.removeprefix("settings."): value}
    if place:
        value = {place: value}
    if not isinstance(value, dict):
        tree["sum"] = value
        return
    parts = [dict(part) for part in tree.get("sum", ())]
    for place, settings in value.items():
        if not str(place).isdecimal() or int(place) >= len(parts) or not isinstance(settings, dict):
            raise ValueError(
                f"sum.{place}: {name} is a sum of {len(parts)} parts; sum.0.beta is a setting of the first"
            )
        parts[int(place)] |= settings
    tree["sum"] = parts


def _as_overridden(tree: _Tree, preset: Composition) -> Composition:
    """The composition that ``tree`` holds so far, perhaps with components of other kinds; ``preset`` if incomplete."""
    try:
        return Composition.model_validate(with_parts(tree))
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

    A composition written out names a link, terms, a head or a sum.
    """

    preset: str = "custom"

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        rest = {key: value for key, value in given.items() if key != "preset"}
        name = _preset_of(given.get("preset"), rest)
        if name == "custom" or not isinstance(name, str):
            return with_parts(given)
        return {**resolve(name, _undocumented(rest)), "preset": name}
