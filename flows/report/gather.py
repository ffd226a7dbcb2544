"""Gathers the facts about a round from its run folder; computes nothing but histograms."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.report.charts import EMPTY, dispersion_histogram, margin_histogram
from flows.report.facts import (
    DiscriminatorFacts,
    GateFacts,
    LabelFacts,
    PairFacts,
    RoundFacts,
    SampleComparison,
    StageFacts,
    TrainingFacts,
    estimate,
    label_facts,
)
from flows.run_folder.approvals import DECISION, read_approval
from flows.run_folder.specs.suite_keys import SUITES
from flows.run_folder.stage_keys import reference_name
from flows.run_folder.stage_table import STAGES
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.storage.manifest import Manifest
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.step_log import STEPS, read_steps
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import read_alarms
from pipeline.training.watch.held_out import read_held_out
from pipeline.types import Group

# Comparisons of a round that a page or an artefact shows at most.
COMPARED = 10


def round_facts(run: RunFolder, config: RunConfig, round_: int, comparisons: int = COMPARED) -> RoundFacts:
    """Read the facts about ``round_``, with at most ``comparisons`` comparisons; stages may be missing.

    Raises:
        RunError: a file of the round cannot be read.
    """
    manifests = _manifests(run, round_)
    metrics = evaluation_metrics(run, round_)
    return RoundFacts(
        round=round_,
        metrics=metrics,
        reward=metrics.get("reward"),
        reward_greedy=metrics.get("reward_greedy"),
        win_rate_vs_start=estimate(metrics, "win_rate_vs_start"),
        win_rate_vs_previous=estimate(metrics, "win_rate_vs_previous"),
        kl_to_start=metrics.get("kl_to_start"),
        kl_to_previous=metrics.get("kl_to_previous"),
        response_length=metrics.get("response_length"),
        stop_rate=metrics.get("stop_rate"),
        sampler_trainer_gap=metrics.get("sampler_trainer_gap"),
        pairs=_pairs(run, config, round_, manifests),
        labels=_labels(manifests, metrics),
        discriminator=_discriminator(manifests),
        training=_training(run, config, round_, manifests),
        gate=_gate(run, round_),
        stages=tuple(_stage(name, manifest) for name, manifest in manifests.items()),
        comparisons=_comparisons(run, round_, comparisons),
    )


def evaluated_rounds(run: RunFolder) -> list[int]:
    """The rounds that have an evaluation, ascending."""
    return [round_ for round_ in run.rounds() if (run.stage(round_, "evaluation").folder / "metrics.json").is_file()]


def _manifests(run: RunFolder, round_: int) -> dict[str, Manifest]:
    found = {name: run.stage(round_, name).manifest() for name in STAGES}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def evaluation_metrics(run: RunFolder, round_: int) -> dict[str, Any]:
    """The metrics.json of a round's evaluation, and of its suites; empty if the round is not evaluated.

    Raises ``RunError`` if one is unreadable.
    """
    found = _json(run.stage(round_, "evaluation").folder / "metrics.json")
    return {**suite_metrics(run, round_), **found} if found else {}


def suite_metrics(run: RunFolder, round_: int) -> dict[str, Any]:
    """The metrics.json of a round's suites; empty if it has none. Raises ``RunError`` if it is unreadable."""
    return _json(run.stage(round_, SUITES).folder / "metrics.json") or {}


def _json(file: Path) -> dict[str, Any] | None:
    try:
        plain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: not readable JSON ({error})") from None
    return plain


def _pairs(run: RunFolder, config: RunConfig, round_: int, manifests: Mapping[str, Manifest]) -> PairFacts | None:
    manifest = manifests.get("pairs")
    if manifest is None:
        return None
    said: dict[str, Any] = dict(manifest.metrics)
    entropies = sorted((run.stage(round_, "reference").folder / reference_name(0)).glob("*.parquet"))
    scaled = config.loss.inputs.dispersion is not None and "reference" in manifests
    return PairFacts(
        kind=said["kind"],
        rows=manifest.rows,
        own=said["own"],
        dropped={cause: count for cause, count in said["dropped"].items() if count},
        margins=margin_histogram(run.stage(round_, "pairs").folder / "rows.parquet"),
        margin=said["margin"],
        dispersion=dispersion_histogram(entropies) if scaled else EMPTY,
    )


def _labels(manifests: Mapping[str, Manifest], metrics: Mapping[str, Any]) -> tuple[LabelFacts, ...]:
    found = [label_facts(name, manifests[name].metrics) for name in ("gold", "labels") if name in manifests]
    if metrics.get("labelling"):
        found.append(label_facts("evaluation", metrics["labelling"]))
    if metrics.get("suite_labelling"):
        found.append(label_facts(SUITES, metrics["suite_labelling"]))
    gate = _said(manifests, "gate")
    # Gates of before told only of scores by a second labeller.
    asked = gate.get("labelling") or gate.get("second") or {}
    if asked.get("questions"):
        found.append(label_facts("gate", asked))
    return tuple(found)


def _discriminator(manifests: Mapping[str, Manifest]) -> DiscriminatorFacts | None:
    fitted, labels, gold = (_said(manifests, name) for name in ("discriminator", "labels", "gold"))
    if not fitted and not gold and "silver" not in labels:
        return None
    return DiscriminatorFacts(
        bought=fitted.get("bought"),
        gold=labels.get("gold", gold.get("comparisons")),
        silver=labels.get("silver"),
        accuracy=fitted.get("accuracy"),
        previous_accuracy=fitted.get("previous_accuracy"),
        fresh_accuracy=fitted.get("fresh_accuracy"),
        why_not=fitted.get("why_not"),
    )


def _said(manifests: Mapping[str, Manifest], name: str) -> dict[str, Any]:
    return dict(manifests[name].metrics) if name in manifests else {}


def _training(
    run: RunFolder, config: RunConfig, round_: int, manifests: Mapping[str, Manifest]
) -> TrainingFacts | None:
    said = _said(manifests, "policy")
    if "loss" not in said:
        return None
    numbers = {name: float(value) for name, value in said.items() if isinstance(value, int | float)}
    folder = run.stage(round_, "policy").folder
    return TrainingFacts(
        numbers,
        read_steps(folder / STEPS) if (folder / STEPS).exists() else (),
        tuple(alarm_line(alarm, config.loss.preset) for alarm in read_alarms(folder)[0]),
        read_held_out(folder),
        said.get("kept_step"),
        said.get("ended_because"),
        _passes(said.get("passes"), said.get("padded_because")) if config.modality == "text" else None,
    )


def _passes(tokens: Mapping[str, Any] | None, why: str | None) -> str | None:
    """How rows were computed, in words; None: stages of before tell nothing."""
    if tokens is None:
        return None
    return PassTokens(tokens["shared"], tokens["packed"], tokens["padded"]).line(why)


def _gate(run: RunFolder, round_: int) -> GateFacts | None:
    said = _json(run.stage(round_, "gate").folder / DECISION)
    if said is None:
        return None
    measures, approval = said.get("measures") or {}, read_approval(run, round_)
    answer = None if approval is None else approval.decision
    return GateFacts(said["decision"], tuple(said["reasons"]), said.get("best_round"), measures, answer)


def _stage(name: str, manifest: Manifest) -> StageFacts:
    said: dict[str, Any] = dict(manifest.metrics)
    # The stage that samples for the evaluation reports the tokens of greedy and sampled responses separately.
    parts = [said, *(part for part in said.values() if isinstance(part, dict))]
    counts = [part["tokens"] for part in parts if isinstance(part.get("tokens"), int)]
    tokens = sum(counts) if counts else None
    rate = said.get("tokens_per_second")
    if rate is None and manifest.seconds > 0:
        rate = (manifest.rows if tokens is None else tokens) / manifest.seconds
    return StageFacts(name, manifest.rows, manifest.seconds, tokens, rate, said.get("peak_memory") or {})


def _comparisons(run: RunFolder, round_: int, count: int) -> tuple[SampleComparison, ...]:
    if round_ == 0:
        return ()
    before, after = (_greedy(run, number, count) for number in (0, round_))
    return tuple(
        SampleComparison(
            "\n".join(message.shown for message in group.prompt.shown),
            before[key].responses[0].text,
            _score(before[key]),
            group.responses[0].text,
            _score(group),
        )
        for key, group in after.items()
        if key in before
    )


def _greedy(run: RunFolder, round_: int, count: int) -> dict[str, Group]:
    """The first ``count`` prompts; every round gets the same prompts in the same order."""
    found: dict[str, Group] = {}
    for group in read_groups(run.stage(round_, "evaluation").folder / "greedy"):
        if len(found) == count:
            break
        found[group.prompt.id] = group
    return found


def _score(group: Group) -> float | None:
    return group.scores[0] if group.scores else None
