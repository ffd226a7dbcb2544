"""The HTML page. Data in, text out; text by models is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from flows.report.facts import RoundFacts, estimate
from flows.report.findings.columns import of_images, of_modality
from flows.report.findings.hacked import HackedReward, hacked_reward
from flows.report.findings.verdicts import verdict_kind, verdict_words
from flows.report.html.data import data_panels, time_panels
from flows.report.html.drawing.frame import definitions
from flows.report.html.outcome import gate_panels, hacking_panels, outcome_panels
from flows.report.html.panel import Runs
from flows.report.html.pictures.section import ROOM, pictures_data
from flows.report.html.run_facts import RunFacts
from flows.report.html.samples import JSON_FORM, samples_data
from flows.report.html.tables import (
    criteria_table,
    differences_table,
    discriminator_table,
    labels_table,
    memory_table,
    parts_table,
    pass_lines,
    round_place,
    rounded_time,
    rounds_table,
    suites_table,
    worse_parts,
)
from flows.report.html.training import training_panels
from pipeline.types.counts import number_of

_TEMPLATE, _HOVER = (Path(__file__).parent / name for name in ("page.html.jinja", "drawing/hover.js"))
# Bytes of a page: small enough for any mail.
PAGE_BYTES = 1_000_000
# For counts of samples, which the page without samples holds as 0.
_SPARE = 100


def render_report(runs: Runs) -> str:
    """Render the page of one or more runs. Panels and tables without numbers are left out."""
    sections = {
        "outcome": outcome_panels(runs),
        "hacking": hacking_panels(runs),
        "limits": gate_panels(runs),
        "training": training_panels(runs),
        "data": data_panels(runs),
        "time": time_panels(runs),
    }
    parts = {
        **sections,
        "runs": runs,
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "cards": [_card(run) for run in runs],
        "rounds": rounds_table(runs),
        "suites": suites_table(runs),
        "parts": parts_table(runs),
        "decisions": _decisions(runs),
        "notices": _notices(runs),
        "labels": labels_table(runs),
        "criteria": criteria_table(runs),
        "discriminator": discriminator_table(runs),
        "memory": memory_table(runs),
        "passes": pass_lines(runs),
        "worse": worse_parts(runs),
        "answers": _answers(runs),
        "differences": differences_table(runs) if len(runs) > 1 else None,
        "figures": any(sections.values()),
        "definitions": definitions(),
        "all_images": all(of_images([facts.metrics for facts in run.rounds]) for run in runs),
        "hover": _HOVER.read_text(encoding="utf-8"),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = JSON_FORM
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    bare = template.render(**parts, samples=samples_data(runs, 0), pictures=[])
    room = PAGE_BYTES - len(bare.encode()) - _SPARE
    pictures = pictures_data(runs, round(room * ROOM))
    with_pictures = template.render(**parts, samples=samples_data(runs, 0), pictures=pictures)
    room = PAGE_BYTES - len(with_pictures.encode()) - _SPARE
    return template.render(**parts, samples=samples_data(runs, room), pictures=pictures)


def _card(run: RunFacts) -> dict[str, Any]:
    """A few key numbers of the run."""
    numbers: list[tuple[str, str, str]] = []
    if run.evaluated:
        first, last = run.evaluated[0], run.evaluated[-1]
        numbers += _ranking(last)
        if last.reward is not None and first.reward is not None:
            numbers.append(("reward", f"{last.reward:.3g}", f"from {first.reward:.3g}"))
        if last.win_rate_vs_start is not None and last.round > 0:
            won = last.win_rate_vs_start
            spread = f"{won.low:.0%} to {won.high:.0%}" if won.low is not None and won.high is not None else ""
            numbers.append(("win rate vs start", f"{won.mean:.0%}", spread))
        if last.kl_to_start is not None:
            numbers.append(("KL to start", f"{last.kl_to_start:.3f}", of_modality("nats per token", [last.metrics])))
        if last.response_length is not None and first.response_length is not None:
            numbers.append(("length", f"{last.response_length:.0f}", f"tokens, from {first.response_length:.0f}"))
    trained = f"{number_of(len(run.trained), 'round')} trained"
    numbers.append(("time", rounded_time(sum(facts.seconds for facts in run.rounds)), trained))
    cost = sum(facts.label_cost for facts in run.rounds)
    if cost:
        numbers.append(("labels", f"{cost:.4g}", "currency of the config"))
    return {"run": run, "numbers": numbers, "verdict": _verdict(run)}


def _ranking(facts: RoundFacts) -> list[tuple[str, str, str]]:
    """How a round ranks held-out pairs: what an offline run is about."""
    shown = []
    for name, title, form in (
        ("held_out_accuracy", "held-out accuracy", "{:.1%}"),
        ("held_out_margin", "held-out margin", "{:.3f}"),
    ):
        found = estimate(facts.metrics, name)
        if found is not None:
            ends = [form.format(end) for end in (found.low, found.high) if end is not None]
            shown.append((title, form.format(found.mean), " to ".join(ends)))
    return shown


def _verdict(run: RunFacts) -> str:
    judged = [(facts.round, facts.gate) for facts in run.rounds if facts.gate is not None]
    if not judged:
        return ""
    round_, made = judged[-1]
    return f"gate after round {round_}: {verdict_words(made.decision, round_, made.best_round)}"


def _decisions(runs: Runs) -> list[dict[str, Any]]:
    return [
        {
            "place": round_place(runs, run, facts),
            "decision": verdict_words(facts.gate.decision, facts.round, facts.gate.best_round),
            "kind": verdict_kind(facts.gate.decision, facts.round, facts.gate.best_round),
            "reasons": facts.gate.reasons,
            "best": facts.gate.best_round,
        }
        for run in runs
        for facts in run.rounds
        if facts.gate is not None
    ]


def _answers(runs: Runs) -> list[tuple[str, HackedReward]]:
    """For each run whether its reward is hacked, by its newest evaluated round."""
    found = []
    for run in runs:
        max_kl = next((limit.value for limit in run.limits if limit.name == "max_kl"), None)
        answer = hacked_reward(run.evaluated[-1], max_kl) if run.evaluated else None
        if answer is not None:
            found.append((f"{run.name} · {answer.round}" if len(runs) > 1 else str(answer.round), answer))
    return found


def _notices(runs: Runs) -> list[str]:
    """Alarms, early ends and kept weights of all trainings."""
    return [
        f"round {round_place(runs, run, facts)}: {notice}"
        for run in runs
        for facts in run.rounds
        if facts.training is not None
        for notice in facts.training.notices()
    ]
