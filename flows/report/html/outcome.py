"""Panels of results on held-out prompts, and of signs that the policy pleases only its labeller.

A panel without numbers is left out.
"""

from dataclasses import dataclass

from flows.report.html.drawing.figures import Line, lines_figure
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
    ),
    Metric("Length", "tokens per response", (("response_length", "sampled"),)),
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
        "Gap between the labellers", "difference of win rates", (("gap", "training less second"),), ".0%", level=0.0
    ),
    Metric(
        "Reward paid for length",
        "reward per token",
        (("reward_length_slope", "slope"),),
        note="Slope of the gain in reward over the gain in tokens, prompt by prompt.",
        level=0.0,
    ),
    Metric(
        "Repetition",
        "rise of the share of responses",
        (("repetition_rise", "repeat four words"),),
        ".0%",
        level=0.0,
    ),
)


def outcome_panels(runs: Runs) -> list[Panel]:
    """Panels of results on held-out prompts, including the frontier of reward and KL."""
    found = [panel for metric in OUTCOME if (panel := _of_metric(runs, metric)) is not None]
    frontier = _frontier(runs)
    places = [place for place, panel in enumerate(found) if panel.title == "KL"]
    if frontier is not None:
        found.insert(places[0] + 1 if places else len(found), frontier)
    return found


def hacking_panels(runs: Runs) -> list[Panel]:
    """Signs that the policy pleases only its labeller; empty if no gate measured any."""
    if not any(_measured(runs, sign) for sign in ("gap", "reward_length_slope")):
        return []
    compared = [metric for metric in HACKING if all(_measured(runs, name) for name, _ in metric.names)]
    return [panel for metric in compared if (panel := _of_metric(runs, metric)) is not None]


def _measured(runs: Runs, name: str) -> bool:
    return any(facts.measured(name) is not None for run in runs for facts in run.rounds)


def _of_metric(runs: Runs, metric: Metric) -> Panel | None:
    """One line per metric and run. Colours tell runs apart, and dashes metrics; with one run, colours tell metrics."""
    lines = []
    several = len(runs) > 1
    for number, run in enumerate(runs):
        for place, (name, label) in enumerate(metric.names):
            known = [facts for facts in run.evaluated if facts.measured(name) is not None]
            if len(known) < 2:
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
    figure = lines_figure(lines, x_title="round", y_format=metric.y_format, level=metric.level, whole=True)
    return Panel(metric.title, metric.unit, figure, metric.note)


def _frontier(runs: Runs) -> Panel | None:
    lines = []
    for number, run in enumerate(runs):
        known = [f for f in run.evaluated if f.reward is not None and f.kl_to_start is not None]
        if len(known) < 2:
            continue
        x, y = [f.kl_to_start or 0.0 for f in known], [f.reward or 0.0 for f in known]
        lines.append(Line(run.name, x, y, number, texts=[str(f.round) for f in known] if len(known) <= 20 else None))
    if not lines:
        return None
    figure = lines_figure(lines, x_title="KL to start, nats per token")
    return Panel(
        "Reward over KL", "reward; numbers are rounds", figure, "Upper left is better: more reward for less distance."
    )
