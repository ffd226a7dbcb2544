"""``prefloop losses``: list the presets by family, show one in full, plot the links."""

import difflib
import json
import os
import textwrap
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console

from pipeline.config import Composition, Formula, preset_names, resolve
from pipeline.config.images.losses import image_refusal
from pipeline.config.loss.composition import WeightedPart
from pipeline.config.loss.formula import Family
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.presets import AMBIGUOUS, DOCUMENTATION, settings_of
from pipeline.config.loss.terms import Term
from pipeline.errors import UserError

FAMILIES = {
    "dpo": "DPO and its labels, weights and data",
    "prior": "Prior, token weights, shape of the score: what a response is measured by",
    "dispersion": "Dispersion: a scale for each pair or batch",
    "link": "Link: from margin to loss",
    "reward": "Rewards, and other shapes of the two scores",
    "list": "K responses to a prompt",
    "one_sided": "One-sided terms: each response against a target of its own",
    "regularised": "Regularised: the preference loss and one more term",
    "supervised": "Supervised",
}
PLOT_ENDINGS = (".png", ".svg", ".pdf")
NEEDS = {
    "rejected": "pairs: a chosen and a rejected response to each prompt",
    "responses": "K ≥ 2 responses to each prompt, with rewards: the run's scored samples, or the columns responses and "
    "rewards; a pair with rewards is K = 2",
    "reference": "log-probs under the reference policy: computed once a round",
    "kl": "KL(π_ref ‖ π) over the whole vocabulary at each token: computed while training, the reference in memory",
    "collision": "Σ π(v)² over the whole vocabulary at each token: computed while training",
    "dispersion": "the reference's entropy over both responses: computed once a round, one number a pair",
    "edited": "which tokens the two responses do not share: found by comparing them",
    "weights:given": "a weight for each token: from the two models that training.contrastive names",
    "weights:learned": "token masks: heads on the reference's hidden states, trained with the policy",
    "weights:activation": "token masks: from the reference's activations, computed while training",
    "prior:given": "log ζ of both responses: the columns chosen_prior and rejected_prior",
    "prior:learned": "log ζ: a head on the reference's hidden states, trained with the policy",
    "reward_chosen": "scores of both responses: the run's scorer, or the columns chosen_score and rejected_score",
    "win_probability": "the probability that a response wins: from the run's scores, or the columns "
    "win_probability and win_probability_rejected",
    "calibration": "a sample of the reference policy for each prompt: drawn once a round",
    "value": "the prompt's expected reward: a value head, trained with the policy",
    "advantage": "an advantage for each token: estimated once a round from a value head under the policy that "
    "the round starts from",
    "returns": "a return for each token: stored with the advantages",
    "token_value": "each token's expected reward: a value head, trained with the policy",
    "critic_chosen": "two critics on hidden states of policy and reference, trained with the policy",
}
EXTRAPOLATED = "the newest policy and the one before it (before round 1: what training.references names)"
SEVERAL = "the round's own, and those that training.references names"


def print_presets() -> None:
    """Print all presets by family, one line each."""
    console = Console(highlight=False, markup=False)
    presets = {name: preset(name) for name in preset_names()}
    width = max(map(len, presets)) + 2
    for family in get_args(Family):
        members = [name for name, parts in presets.items() if parts.family == family]
        console.print(FAMILIES[family], style="bold", soft_wrap=True)
        for name in members:
            _print_row(console, f"  {name}", presets[name].summary, width + 2)
        console.print()
    console.print("prefloop losses NAME shows the formula, needs and settings of one loss.", soft_wrap=True)


def print_presets_for_images() -> None:
    """Print which presets carry over to images, and why the others do not, one line each."""
    console = Console(highlight=False, markup=False)
    refused = {name: image_refusal(preset(name)) for name in preset_names()}
    width = max(map(len, refused)) + 4
    console.print("Carry over: an image's score is a bound on its log-likelihood, draws stand for tokens", style="bold")
    for name, why in refused.items():
        if why is None:
            _print_row(console, f"  {name}", preset(name).summary, width)
    console.print()
    console.print("Refused with modality: image", style="bold")
    for name, why in refused.items():
        if why is not None:
            _print_row(console, f"  {name}", why, width)


def print_preset(name: str) -> None:
    """Print one preset in full. Raises ``UserError`` for an unknown or ambiguous name."""
    parts = preset(name)
    console = Console(highlight=False, markup=False)
    console.print(f"{name}: {parts.summary}", style="bold", soft_wrap=True)
    rows = {
        "formula": [parts.formula],
        "parts": [", ".join(components(parts)) or "none"],
        "needs": needs(parts),
        "settings": settings(parts),
        "identity": [parts.identity_with],
        "departures": list(parts.departures) or ["none known"],
        "citation": [parts.citation],
    }
    for heading, lines in rows.items():
        for number, line in enumerate(lines):
            _print_row(console, f"  {heading}" if number == 0 else "", line, 14)


def plot_links(file: Path) -> None:
    """Draw all links and their slopes into ``file``; its ending sets the format.

    Raises:
        UserError: an unsupported ending, or a folder that cannot be written.
    """
    if file.suffix.lower() not in PLOT_ENDINGS:
        raise UserError(f"--plot: {file}: must end in one of {', '.join(PLOT_ENDINGS)}")
    # Check the folder before loading torch and matplotlib, which takes seconds.
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"--plot: {file.parent}: not a writable folder")
    from flows.report.link_plot import draw_links

    scratch = file.with_name(file.name + ".tmp")
    try:
        scratch.write_bytes(draw_links(file.suffix.lower()[1:]))
        scratch.replace(file)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UserError(f"--plot: {file}: cannot be written ({error.strerror})") from None
    print(file)


def preset(name: str) -> Composition:
    """Return the composition of preset ``name``. Raises ``UserError`` for an unknown or ambiguous name."""
    wanted = name.lower().replace("-", "_")
    if wanted not in AMBIGUOUS and name not in preset_names():
        near = difflib.get_close_matches(wanted, preset_names(), n=5, cutoff=0.5)
        named = f"; is it {', '.join(near)}?" if near else ""
        raise UserError(f"{name}: no such loss{named}\n  prefloop losses lists all")
    try:
        return Composition.model_validate(resolve(wanted if wanted in AMBIGUOUS else name, {}))
    except ValueError as error:
        raise UserError(str(error)) from None


def components(parts: Composition) -> list[str]:
    """List the components that differ from the empty formula, and the one-sided terms written out."""
    if parts.sum:
        return [f"{part.weight:g} {part.preset}" for part in parts.sum]
    found = []
    for field, value in parts.model_dump(exclude={*DOCUMENTATION, "sum"}).items():
        default = Composition.model_fields[field].get_default()
        plain = default.model_dump() if isinstance(default, BaseModel) else default
        if isinstance(value, dict) and value != plain:
            found.append(f"{field} {value.get('kind', '')}".strip())
    return found + [_term(term) for term in parts.terms]


def needs(parts: Composition) -> list[str]:
    """Describe what the loss reads and where it comes from, one line each."""
    reads = needs_of(parts)
    inputs = parts.inputs
    kinds = {"weights": inputs.weights.kind, "prior": inputs.prior.kind}
    keys = {f"{need}:{kinds[need]}" if need in kinds else need for need in reads}
    found = [words for key, words in NEEDS.items() if key in keys]
    if (count := needs_of(parts).references) > 1:
        which = EXTRAPOLATED if inputs.prior.kind == "extrapolated" else SEVERAL
        found[found.index(NEEDS["reference"])] = f"log-probs under {count} reference policies: {which}"
    if needs_of(parts).accepts_unpaired:
        found.append("instead of pairs, also single responses marked good or bad: the columns completion and label")
    if needs_of(parts).statistics:
        found.append("statistics over the whole batch: gathered while training, saved in checkpoints")
    return found or ["only chosen responses"]


def settings(parts: Composition) -> list[str]:
    """List each setting with its default and meaning, one line each."""
    rows = [(path, f"{path} = {_plain(value)}") for path, value in settings_of(parts).items()]
    width = max(len(assignment) for _, assignment in rows)
    return [f"{assignment:{width}}  {_meaning(parts, path)}".rstrip() for path, assignment in rows]


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _meaning(parts: Formula, path: str) -> str:
    """Return the schema's description of the setting at ``path``, or of its component, and its choices."""
    field, _, leaf = path.partition(".")
    if field == "sum" and isinstance(parts, Composition):
        number, _, leaf = leaf.partition(".")
        part = parts.sum[int(number)]
        said = (
            str(WeightedPart.model_fields["weight"].description) if leaf == "weight" else _meaning(part.settings, leaf)
        )
        return f"{part.preset}: {said}"
    if field == "terms":
        number, _, leaf = leaf.partition(".")
        return f"{str(Term.model_fields[leaf].description).partition(': ')[0]} of {_term(parts.terms[int(number)])}"
    model = type(getattr(parts, field) if leaf else parts)
    setting = model.model_fields[leaf or field]
    said = setting.description or (model.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else ()
    return said + (f"; one of {', '.join(map(str, choices))}" if choices else "")


def _term(term: Term) -> str:
    """Write c f(a R_w + b R_l − m) without factors of 1 and terms of 0."""
    inside = ""
    for factor, score in ((term.chosen, "R_w"), (term.rejected, "R_l")):
        if factor != 0:
            size = "" if abs(factor) == 1 else f"{abs(factor):g} "
            inside += ((" − " if factor < 0 else " + ") if inside else ("−" if factor < 0 else "")) + size + score
    match term.target:
        case "win":
            target = f" − (P_{'w' if term.chosen != 0 else 'l'} − ½)"
        case str():
            target = f" {'−' if term.chosen + term.rejected > 0 else '+'} {term.target}"
        case number:
            target = f" − {number:g}" if number != 0 else ""
    return f"{'' if term.coefficient == 1 else f'{term.coefficient:g} '}{term.link.kind}({inside}{target})"


def _print_row(console: Console, heading: str, text: str, indent: int) -> None:
    """Print one row; wrapped and indented on a terminal, on one line in a pipe."""
    line = f"{heading:{indent}}{text}"
    if console.is_terminal:
        line = textwrap.fill(line, max(console.width, indent + 30), subsequent_indent=" " * indent)
    console.print(line, soft_wrap=True)
