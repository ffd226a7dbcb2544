"""The model card of a trained policy: a README.md in Hugging Face's form. Data in, text out. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.report.facts import Estimate, RoundFacts, cell
from flows.report.findings.columns import shown_columns
from flows.report.findings.verdicts import verdict_words
from flows.report.gather import round_facts
from flows.run_folder.approvals import read_approval
from flows.run_folder.growth import added_stages
from pipeline.config import (
    AnyData,
    ConditionData,
    DatasetData,
    DotPairs,
    DotsData,
    FileData,
    ImageData,
    MixtureData,
    PretrainedPolicy,
    RestaurantData,
    RunConfig,
)
from pipeline.config.data.mixture import sources_in
from pipeline.safe_text import markdown
from pipeline.storage.atomic import write_text
from pipeline.storage.run_folder import RunFolder
from pipeline.types.counts import number_of

# Parts of the loss that document it; the card shows them as sentences.
DOCUMENTED = {"summary", "formula", "citation", "family", "identity_with", "departures"}
TABLES = {
    "prompts": "prompts that rounds could train on",
    "held_out": "held-out prompts, which no round trained on",
    "texts": "reference responses of the warm start",
    "pairs": "pairs",
    "groups": "groups of scored responses",
    "unpaired": "single responses marked good or bad",
    "held_out_pairs": "pairs of held-out prompts",
}
LIMITS = """\
- The numbers above are from this run's own labeller, on held-out prompts of the training data's kind. They do not
  measure truthfulness, safety, or quality elsewhere. A policy may also learn to please its labeller instead of doing
  what is asked of it.
- Nothing was filtered for safety, bias or personal data beyond what the start model and the data already were. Test the
  model for its use before anybody relies on it.
- Licences of the start model and of the data apply to this model too."""


@dataclass(frozen=True)
class CardFacts:
    """Contents of a card. ``rounds`` are those up to and including the policy's own.

    Attributes:
        counts: rows of the run's data by table.
        versions: of the packages that trained the policy.
    """

    config: RunConfig
    rounds: Sequence[RoundFacts]
    counts: Mapping[str, int]
    versions: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The card, in Markdown below YAML front matter; text by users and models in it stays plain text."""
    config, last = facts.config, facts.rounds[-1]
    parts = [
        _front_matter(config),
        f"# {markdown(config.name)}, round {last.round}\n\n{_opening(config, last)}",
        f"## Data\n\n{_data(facts)}",
        f"## Loss\n\n{_loss(config)}",
        f"## Training\n\n{_training(config, last)}",
        f"## Rounds\n\n{_rounds(facts.rounds)}",
        f"## Limits\n\n{LIMITS}",
        "## Versions\n\n" + "\n".join(f"- {markdown(name)} {markdown(v)}" for name, v in facts.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def start_model(config: RunConfig) -> str:
    """The name of the model that training started from, without the folders above it."""
    if not isinstance(config.policy, PretrainedPolicy):
        return "a small model made from scratch"
    path = config.policy.path
    return Path(path).name if _is_folder(path) else path


def _is_folder(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1 or Path(path).is_dir()


def _front_matter(config: RunConfig) -> str:
    plain: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if isinstance(config.policy, PretrainedPolicy) and not _is_folder(config.policy.path):
        plain["base_model"] = config.policy.path
    named = [
        part.path
        for data in (config.prompts, config.pairs)
        for _, part in sources_in(data, "")
        if isinstance(part, DatasetData)
    ]
    hub = [name for name in dict.fromkeys(named) if not _is_folder(name)]
    if hub:
        plain["datasets"] = hub
    plain["tags"] = ["prefloop", "preference-learning", config.loss.preset]
    return f"---\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=False).strip()}\n---"


def _opening(config: RunConfig, last: RoundFacts) -> str:
    way = "labelled samples of its own" if config.mode == "iterative" else "a fixed set of preferences"
    made = f"{number_of(last.round, 'round')} of preference training on {way}"
    return f"{markdown(start_model(config))} after {made}, by prefloop. Seed {config.seed}."


def _data(facts: CardFacts) -> str:
    config = facts.config
    lines = ["| what | where from |", "| --- | --- |"]
    for name, data in (("prompts", config.prompts), ("preferences", config.pairs)):
        if data is not None:
            lines.append(f"| {name} | {_where(data)} |")
    if config.scorer is not None:
        lines.append(f"| labels | {_labeller(config)} |")
    lines += ["", "| rows | |", "| --- | ---: |"]
    lines += [f"| {told} | {facts.counts[name]} |" for name, told in TABLES.items() if facts.counts.get(name)]
    pairs = facts.rounds[-1].pairs
    if pairs is not None:
        lines.append(f"| trained on in round {facts.rounds[-1].round} | {pairs.rows} |")
    return "\n".join(lines)


def _where(data: AnyData) -> str:
    match data:
        case FileData():
            return f"{markdown(Path(data.path).name)} (file)"
        case MixtureData():
            return ", ".join(map(_where, data.of))
        case DatasetData():
            return f"{markdown(data.where)} (data set)"
        case ImageData():
            return f"{markdown(Path(data.path).name)} (images)"
        case DotsData() | DotPairs() | ConditionData():
            return f"{data.kind} (generated)"
        case RestaurantData():
            return "generated restaurant descriptions"


def _labeller(config: RunConfig) -> str:
    plain = config.scorer.model_dump(mode="json") if config.scorer is not None else {}
    name = plain.get("path") or plain.get("file") or (plain.get("server") or {}).get("model") or ""
    return f"{markdown(str(plain.get('kind')))} {markdown(Path(str(name)).name)}".strip()


def _loss(config: RunConfig) -> str:
    loss = config.loss
    plain = loss.model_dump(mode="json", exclude_defaults=True, exclude=DOCUMENTED)
    lines = [f"{markdown(loss.preset)}: {markdown(loss.summary)}" if loss.summary else markdown(loss.preset)]
    lines += ["", f"    {loss.formula}"] if loss.formula else []
    lines += ["", f"Citation: {markdown(loss.citation)}"] if loss.citation else []
    settings = yaml.safe_dump(plain, sort_keys=False, allow_unicode=False)
    return "\n".join([*lines, "", "```yaml", settings.replace("`", "'").rstrip("\n"), "```"])


def _training(config: RunConfig, last: RoundFacts) -> str:
    training = config.training
    told = {
        "reference": training.reference,
        "learning rate": f"{training.learning_rate:g}",
        "batch size": str(training.batch_size),
        "epochs": f"{training.epochs:g}",
        "weights": "all"
        if training.lora is None
        else f"low-rank adapter of rank {training.lora.rank}"
        + (", merged each round" if training.lora.lifetime == "round" else ", one for the run"),
        "dtype": training.dtype,
    }
    if last.training is not None and last.training.steps:
        told["optimiser steps of the last round"] = str(len(last.training.steps))
    return "\n".join(f"- {name}: {value}" for name, value in told.items())


def _rounds(rounds: Sequence[RoundFacts]) -> str:
    shown = shown_columns([facts.metrics for facts in rounds])
    headings = [heading.replace("\n", " ") for _, heading, _ in shown]
    lines = [f"| round | {' | '.join(headings)} |", "| ---: |" + " ---: |" * len(headings)]
    for facts in rounds:
        cells = [cell(facts.metrics.get(name), form) for name, _, form in shown]
        lines.append(f"| {facts.round} | {' | '.join(cells)} |")
    last = rounds[-1]
    lines.append("\nMeasured on held-out prompts; round 0 is the model before preference training.")
    lines += [f"Wins against {name}: {_interval(wins)}." for name, wins in _wins(last) if wins is not None]
    if last.gate is not None:
        words = verdict_words(last.gate.decision, last.round, last.gate.best_round)
        reasons = "; ".join(markdown(reason) for reason in last.gate.reasons)
        lines.append(f"The gate of round {last.round}: {markdown(words)}{reasons and f' ({reasons})'}.")
    return "\n".join(lines)


def _wins(facts: RoundFacts) -> tuple[tuple[str, Estimate | None], ...]:
    return (("the start", facts.win_rate_vs_start), ("the round before", facts.win_rate_vs_previous))


def _interval(wins: Estimate) -> str:
    between = "" if wins.low is None or wins.high is None else f" (95 % interval {wins.low:.1%} to {wins.high:.1%})"
    return f"{wins.mean:.1%}{between}"


def write_card(run: RunFolder, config: RunConfig, round_: int) -> Path | None:
    """Write ``RUN/cards/round_NNN.md``, unless the round's gate or a person did not let the policy through."""
    answer = read_approval(run, round_)
    gate = round_facts(run, config, round_, comparisons=0).gate
    decision = answer.decision if answer is not None else "promote" if gate is None else gate.decision
    if decision in ("pause", "roll_back"):
        return None
    file = run.root / "cards" / f"round_{round_:03d}.md"
    file.parent.mkdir(exist_ok=True)
    write_text(file, card(run, config, round_))
    return file


def card(run: RunFolder, config: RunConfig, round_: int) -> str:
    """The card of a round's policy."""
    rounds = [round_facts(run, config, number, comparisons=0) for number in range(round_ + 1)]
    counts = {name: n for name, n in run.stage(0, "data").require().metrics.items() if isinstance(n, int)}
    for added in added_stages(run, round_):
        counts["prompts"] += added.require().rows
    return model_card(CardFacts(config, rounds, counts, run.stage(round_, "policy").require().versions))
