"""Panels of results on held-out prompts, and of signs that the policy pleases only its labeller.

A panel without numbers is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flows.report.facts import RoundFacts
from flows.report.findings.columns import of_modality
from flows.report.html.drawing.figures import Level, Line, lines_figure
from flows.report.html.panel import Panel, Runs, run_label


@dataclass(frozen=True, slots=True)
class Metric:
    """A panel of one or more metrics of the evaluation, or of the gate, over rounds."""

    title: str
    unit: str
    names: tuple[tuple[str, str], ...]
    y_format: str = ""
    note: str = ""
    level: float | None = None
    # Drawn with the gate's limits of its metrics.
    judged: bool = False


OUTCOME = (
    Metric(
        "Held-out pairs ranked as labelled",
        "share of pairs",
        (
            ("held_out_accuracy", "policy"),
            ("held_out_accuracy_of_longer", "longer wins"),
            ("held_out_accuracy_of_shorter", "shorter wins"),
            ("held_out_accuracy_of_start_logp", "likelier under the start wins"),
        ),
        ".0%",
        "Ties count half; bands are 95 % intervals over prompts. A policy that ranks no better than the best of the "
        "other lines has learned nothing that these do not know.",
        0.5,
    ),
    Metric("Held-out margin", "β × difference of scores", (("held_out_margin", "mean"),), level=0.0),
    Metric("Held-out log-loss", "nats", (("held_out_log_loss", "mean"),), note="−log σ(margin); 0.693 knows nothing."),
    Metric(
        "Reward",
        "mean over held-out prompts",
        (("reward", "sampled"), ("reward_greedy", "greedy")),
        note="By the training labeller.",
    ),
    Metric(
        "Win rate",
        "share of held-out prompts",
        (("win_rate_vs_start", "vs start"), ("win_rate_vs_previous", "vs previous")),
        ".0%",
        "Ties count half; bands are 95 % intervals over prompts.",
        0.5,
    ),
    Metric(
        "Win rate, length controlled",
        "share of held-out prompts",
        (("lc_win_rate_vs_start", "vs start"), ("lc_win_rate_vs_previous", "vs previous")),
        ".0%",
        "The win rate if both sides' responses were equally long.",
        0.5,
    ),
    Metric(
        "KL",
        "nats per token",
        (("kl_to_start", "to start"), ("kl_to_previous", "to previous")),
        note="On the policy's own samples.",
        judged=True,
    ),
    Metric("Length", "tokens per response", (("response_length", "sampled"),)),
    Metric(
        "Thinking and answer",
        "tokens per response",
        (("thinking_tokens", "thinking"), ("answer_tokens", "answer")),
        note="Tokens before the answer, marks of the thought among them, and the rest.",
    ),
    Metric(
        "Thoughts",
        "share of responses",
        (("thought_rate", "open with a thought"), ("unfinished_thinking_rate", "end inside it")),
        ".0%",
    ),
    Metric(
        "Endings and repetition",
        "share of responses",
        (("stop_rate", "end by themselves"), ("repetition_rate", "repeat four words")),
        ".0%",
    ),
    Metric(
        "Variety",
        "distinct n-grams over all",
        (("distinct_1", "single words"), ("distinct_2", "pairs of words")),
        ".0%",
        "A fall means that responses become more alike.",
    ),
    Metric(
        "Slot errors",
        "share of slots",
        (("slot_error_rate_sampled", "sampled"), ("slot_error_rate", "greedy")),
        ".0%",
    ),
    Metric(
        "Log-prob of the data's own responses",
        "nats per token",
        (("reference_logprob", "held-out references"),),
    ),
)
HACKING = (
    Metric(
        "Training and second labeller",
        "win rate vs start",
        (("win_rate_vs_start", "training labeller"), ("second_win_rate_vs_start", "second labeller")),
        ".0%",
        "The policy never trains on the second labeller. Where the two diverge, it learns the labeller, not the task.",
        0.5,
    ),
    Metric(
        "Gap between the labellers",
        "difference of win rates",
        (("gap", "training less second"),),
        ".0%",
        level=0.0,
        judged=True,
    ),
    Metric(
        "Reward paid for length",
        "reward per token",
        (("reward_length_slope", "slope"),),
        note="Slope of the gain in reward over the gain in tokens, prompt by prompt.",
        level=0.0,
    ),
)
GATE = (
    Metric(
        "Length against the base",
        "tokens, as a factor",
        (("length_ratio", "all responses"), ("finished_length_ratio", "those that end by themselves")),
        note="The base is the start, or the newest round that a person promoted against the gate's decision.",
        level=1.0,
        judged=True,
    ),
    Metric(
        "Gain that goes with length",
        "share of the gain in reward",
        (("length_share", "share"),),
        ".0%",
        judged=True,
    ),
    Metric(
        "Repetition",
        "rise of the share of responses",
        (("repetition_rise", "repeat four words"),),
        ".0%",
        level=0.0,
        judged=True,
    ),
    Metric("Responses cut off", "rise of the share", (("stop_fall", "cut off"),), ".0%", level=0.0, judged=True),
    Metric(
        "Variety against the base",
        "pairs of words, as a factor",
        (("distinct_ratio", "pairs"),),
        level=1.0,
        judged=True,
    ),
    Metric(
        "Wins over the best round",
        "share of held-out prompts",
        (("win_rate_vs_best", "this round"), ("win_rate_since_best", "all rounds since")),
        ".0%",
        "Without a labeller: one half, and half the change in held-out accuracy.",
        0.5,
        judged=True,
    ),
    Metric(
        "Wins by the second labeller",
        "share of held-out prompts",
        (("second_win_rate_vs_base", "over the base"), ("second_win_rate_vs_best", "over the best round")),
        ".0%",
        level=0.5,
        judged=True,
    ),
    Metric(
        "Reward against the best round",
        "change of the mean",
        (("reward_change_vs_best", "change"),),
        level=0.0,
        judged=True,
    ),
)


def outcome_panels(runs: Runs) -> list[Panel]:
    """Panels of results on held-out prompts, including reward and accuracy against KL."""
    found = [panel for metric in OUTCOME if (panel := _of_metric(runs, metric)) is not None]
    places = [place for place, panel in enumerate(found) if panel.title == "KL"]
    place = places[0] + 1 if places else len(found)
    return [*found[:place], *_frontiers(runs), *found[place:]]


def hacking_panels(runs: Runs) -> list[Panel]:
    """Signs that the policy pleases only its labeller; empty if no gate measured any."""
    if not any(_measured(runs, sign) for sign in ("gap", "reward_length_slope")):
        return []
    compared = [metric for metric in HACKING if all(_measured(runs, name) for name, _ in metric.names)]
    return [panel for metric in compared if (panel := _of_metric(runs, metric)) is not None]


def gate_panels(runs: Runs) -> list[Panel]:
    """What the gate measured, each with its limits; empty if there is no gate."""
    return [panel for metric in GATE if (panel := _of_metric(runs, metric)) is not None]


def _measured(runs: Runs, name: str) -> bool:
    return any(facts.measured(name) is not None for run in runs for facts in run.rounds)


def _of_metric(runs: Runs, metric: Metric) -> Panel | None:
    """One line per metric and run. Colours tell runs apart, and dashes metrics; with one run, colours tell metrics."""
    lines = []
    several = len(runs) > 1
    for number, run in enumerate(runs):
        for place, (name, label) in enumerate(metric.names):
            known = [facts for facts in run.evaluated if facts.measured(name) is not None]
            if len(known) < (1 if metric.judged and known and known[0].round else 2):
                continue
            points = [facts.measured(name) or 0.0 for facts in known]
            bands = [facts.interval(name) or (point, point) for facts, point in zip(known, points, strict=True)]
            spread = any(low != high for low, high in bands)
            lines.append(
                Line(
                    run_label(run, label, several, len(metric.names) > 1),
                    [facts.round for facts in known],
                    points,
                    colour=number if several else place,
                    dash=place,
                    band=([low for low, _ in bands], [high for _, high in bands]) if spread else None,
                )
            )
    if not lines:
        return None
    limits = _limits(runs, {name for name, _ in metric.names}) if metric.judged else []
    figure = lines_figure(
        lines, x_title="round", y_format=metric.y_format, level=metric.level, whole=True, limits=limits
    )
    return Panel(metric.title, of_modality(metric.unit, _metrics(runs)), figure, metric.note)


def _limits(runs: Runs, measures: set[str]) -> list[Level]:
    """The gates' limits of ``measures``; those of the KL to the start move with what the base already had."""
    found: list[Level] = []
    for run in runs:
        whose = f" ({run.name})" if len({other.limits for other in runs}) > 1 else ""
        for limit in run.limits:
            if limit.measure in measures:
                found.append(Level(f"{limit.name}{whose}", (limit.value,)))
            elif limit.measure == "kl" and "kl_to_start" in measures:
                at = [(facts.round, limit.value + had) for facts in run.rounds if (had := _base_kl(facts)) is not None]
                if at:
                    found.append(Level(f"{limit.name}{whose}", [y for _, y in at], [x for x, _ in at]))
    return list({(level.name, *level.y): level for level in found}.values())


def _base_kl(facts: RoundFacts) -> float | None:
    """The KL to the start of the round that the gate measured from."""
    added = None if facts.gate is None else facts.gate.measures.get("kl")
    return None if facts.kl_to_start is None or added is None else facts.kl_to_start - float(added)


def _metrics(runs: Runs) -> list[Mapping[str, Any]]:
    return [facts.metrics for run in runs for facts in run.evaluated]


def _frontiers(runs: Runs) -> Iterator[Panel]:
    """Yield what is gained against what is paid for it in KL to the start: reward, and accuracy on held-out pairs."""
    for name, title, unit, y_format in (
        ("reward", "Reward over KL", "reward; numbers are rounds", ""),
        ("held_out_accuracy", "Accuracy over KL", "share of held-out pairs; numbers are rounds", ".0%"),
    ):
        lines = []
        for number, run in enumerate(runs):
            points = [(f.kl_to_start, f.measured(name), str(f.round)) for f in run.evaluated]
            known = [(x, y, text) for x, y, text in points if x is not None and y is not None]
            if len(known) < 2:
                continue
            texts = [text for _, _, text in known] if len(known) <= 20 else None
            lines.append(Line(run.name, [x for x, _, _ in known], [y for _, y, _ in known], number, texts=texts))
        if lines:
            more = "more for less distance from the start."
            figure = lines_figure(
                lines, x_title=of_modality("KL to start, nats per token", _metrics(runs)), y_format=y_format
            )
            yield Panel(title, unit, figure, f"Upper left is better: {more}")
