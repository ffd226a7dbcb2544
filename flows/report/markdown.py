"""A round, its sample comparisons and the table of rounds as Markdown for Prefect's artefacts. Facts in, text out.

Text from models or data goes in only through ``shown_text``. Torch-free.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from flows.report.charts import Histogram
from flows.report.facts import (
    DiscriminatorFacts,
    Estimate,
    GateFacts,
    LabelFacts,
    PairFacts,
    RoundFacts,
    SampleComparison,
    StageFacts,
    TrainingFacts,
    cell,
    estimate,
)
from flows.report.findings.columns import of_modality, shown_columns
from flows.report.findings.in_short import examples_of, in_short
from flows.report.findings.parts import part_table
from flows.report.findings.suites import suite_columns, suite_measures, suite_value
from flows.report.findings.verdicts import SIGNS, verdict_kind, verdict_words
from pipeline.evaluation.held_out import baseline_line
from pipeline.safe_text import markdown, markdown_block
from pipeline.types.counts import number_of

# Letters shown of a prompt or a response.
SHOWN_LETTERS = 2000
BARS = "▁▂▃▄▅▆▇█"
NONE = "–"

_Row = tuple[str, Callable[[RoundFacts], object], str]

MEASURES: tuple[_Row, ...] = (
    ("held-out pairs ranked as labelled", lambda facts: estimate(facts.metrics, "held_out_accuracy"), "{:.1%}"),
    ("held-out margin", lambda facts: estimate(facts.metrics, "held_out_margin"), "{:.3f}"),
    ("held-out log-loss", lambda facts: estimate(facts.metrics, "held_out_log_loss"), "{:.3f}"),
    ("reward, sampled", lambda facts: facts.reward, "{:.3f}"),
    ("reward, greedy", lambda facts: facts.reward_greedy, "{:.3f}"),
    # The start would be compared with itself.
    ("wins against the start", lambda facts: facts.win_rate_vs_start if facts.round else None, "{:.1%}"),
    ("wins against the round before", lambda facts: facts.win_rate_vs_previous if facts.round else None, "{:.1%}"),
    ("KL to the start, nats per token", lambda facts: facts.kl_to_start, "{:.4f}"),
    ("KL to the round before, nats per token", lambda facts: facts.kl_to_previous, "{:.4f}"),
    ("length, tokens", lambda facts: facts.response_length, "{:.1f}"),
    ("thinking, tokens", lambda facts: facts.metrics.get("thinking_tokens"), "{:.1f}"),
    ("answer, tokens", lambda facts: facts.metrics.get("answer_tokens"), "{:.1f}"),
    ("open with a thought", lambda facts: facts.metrics.get("thought_rate"), "{:.1%}"),
    ("ended inside a thought", lambda facts: facts.metrics.get("unfinished_thinking_rate"), "{:.1%}"),
    ("ended by themselves", lambda facts: facts.stop_rate, "{:.1%}"),
    ("engine–trainer gap, nats per token", lambda facts: facts.sampler_trainer_gap, "{:.1e}"),
)
TRAINING = (
    ("loss, first step", "first_loss", "{:.4f}"),
    ("loss, at the end", "loss", "{:.4f}"),
    ("margin, β × score difference", "margin", "{:.3f}"),
    ("pairs ranked correctly", "accuracy", "{:.1%}"),
    ("log-prob of chosen, nats per token", "chosen_logp_per_token", "{:.3f}"),
    ("log-prob of rejected, nats per token", "rejected_logp_per_token", "{:.3f}"),
    ("gradient norm", "grad_norm", "{:.3g}"),
)


def round_page(name: str, rounds: int, facts: RoundFacts, earlier: Sequence[RoundFacts] = ()) -> str:
    """The page of one round of the run ``name``; ``earlier`` rounds, such as the start, are for comparison."""
    parts = [f"# {markdown(name)} · round {facts.round} of {rounds}", _in_short(facts, earlier)]
    if facts.gate is not None:
        parts += _gate(facts.gate, _words(facts))
    # The round itself comes first: of a wide table, a narrow page shows the beginning.
    parts += _measures([facts, *reversed(earlier)])
    if facts.pairs is not None:
        parts += _pairs(facts.pairs)
    if facts.training is not None:
        parts += _training(facts.training)
    parts += _labels(facts.labels)
    if facts.discriminator is not None:
        parts += _discriminator(facts.discriminator)
    parts += _stages(facts)
    return "\n\n".join(parts) + "\n"


def comparisons_page(name: str, facts: RoundFacts) -> str:
    """Held-out prompts with the greedy responses of the start and the round, each with its score."""
    title = (
        f"# {markdown(name)} · start and round {facts.round}, {number_of(len(facts.comparisons), 'held-out prompt')}"
    )
    return "\n\n".join([title, *(_comparison(n, one) for n, one in enumerate(facts.comparisons, 1))]) + "\n"


def report_link(report: Path) -> str:
    """The report's address; a browser opens a file when asked to, but not from a link on a page."""
    said = "Browsers do not follow links from here to files: copy the address into a new tab."
    return f"[{markdown(str(report))}]({report.as_uri()})\n\n{said}\n\n{markdown_block(report.as_uri())}\n"


def rounds_rows(rounds: Sequence[RoundFacts]) -> list[dict[str, str]]:
    """The table of rounds, one row each; columns without any values are left out."""
    metrics = [facts.metrics for facts in rounds]
    shown = shown_columns(metrics, suite_columns(metrics))
    rows = []
    gated = any(facts.gate for facts in rounds)
    for facts in rounds:
        row = {"round": str(facts.round)}
        if gated:
            row["gate"] = NONE if facts.gate is None else _words(facts)
        for key, heading, form in shown:
            interval = facts.metrics.get(f"{key}_ci")
            row[heading.replace("\n", " ")] = cell(facts.metrics.get(key), form) + _interval(interval, form)
        row["pairs"] = NONE if facts.pairs is None else f"{facts.pairs.rows:,}"
        row["time"] = clock_time(facts.seconds)
        rows.append(row)
    if any(facts.label_cost for facts in rounds):
        for row, facts in zip(rows, rounds, strict=True):
            row["label cost"] = f"{facts.label_cost:.4g}"
    return rows


def clock_time(seconds: float) -> str:
    """``0:07``, ``12:30`` or ``3:02:11``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def histogram_line(histogram: Histogram) -> str:
    """``-1.5 ▁▃█▂▁ 2.5``: the bins as bars between the histogram's ends."""
    if not histogram.counts:
        return NONE
    most = max(histogram.counts)
    bars = "".join(BARS[round((len(BARS) - 1) * count / most)] if count else " " for count in histogram.counts)
    return f"{histogram.edges[0]:.3g} {bars} {histogram.edges[-1]:.3g}"


def _words(facts: RoundFacts) -> str:
    """The gate's decision, after a sign in its colour: Markdown has no other."""
    assert facts.gate is not None, "the caller checks"
    made = facts.gate.decision, facts.round, facts.gate.best_round
    return f"{SIGNS[verdict_kind(*made)]} {verdict_words(*made)}"


def _in_short(facts: RoundFacts, earlier: Sequence[RoundFacts]) -> str:
    """Sentences alone: they are broken into lines on any page, and a phone shows all of them."""
    return "\n".join(f"- **{question}** {markdown(answer)}" for question, answer in in_short(facts, earlier))


def _gate(gate: GateFacts, words: str) -> list[str]:
    best = "" if gate.best_round is None else f" The best round is {gate.best_round}."
    lines = [f"## Gate: {markdown(words)}"]
    if gate.reasons:
        lines.append("\n".join(f"- {markdown(reason)}" for reason in gate.reasons))
    return [*lines, best.strip()] if best else lines


def _measures(rounds: Sequence[RoundFacts]) -> list[str]:
    columns = ["start" if facts.round == 0 else f"round {facts.round}" for facts in rounds]
    metrics = [facts.metrics for facts in rounds]
    named = [(of_modality(title, metrics), read, form) for title, read, form in MEASURES]
    rows = [[title, *(_value(read(facts), form) for facts in rounds)] for title, read, form in named]
    rows += [
        [markdown(title), *(suite_value(facts, key, form) for facts in rounds)]
        for key, title, form in suite_measures(rounds)
    ]
    known = [row for row in rows if set(row[1:]) != {NONE}]
    line = baseline_line(rounds[0].metrics)
    beside = [] if line is None else [markdown(line)]
    parts = part_table([rounds[0].metrics])
    if parts.rows[0]:
        rows = [[markdown(cell) for cell in row] for row in parts.rows[0]]
        beside.append(_table(["part", *parts.headings], rows))
    return ["## On held-out prompts", _table(["measure", *columns], known), *beside] if known else []


def _pairs(pairs: PairFacts) -> list[str]:
    said = f"Trained on {examples_of(pairs)}"
    said += f", {pairs.own:,} of them from this round." if pairs.own != pairs.rows else "."
    rows = [[markdown(cause.replace("_", " ")), f"{count:,}"] for cause, count in pairs.dropped.items()]
    dropped = _table(["left out because of", "candidates"], rows) if rows else "Nothing was left out."
    lines = ["## Pairs", said, dropped]
    if pairs.margin is not None:
        lines.append(f"Score differences: mean {pairs.margin:.3g}, distribution `{histogram_line(pairs.margins)}`")
    if pairs.dispersion.counts:
        lines.append(f"Dispersion, −log H: `{histogram_line(pairs.dispersion)}`")
    return lines


def _training(training: TrainingFacts) -> list[str]:
    rows = [[title, _value(training.metric(name), form)] for title, name, form in TRAINING]
    steps = number_of(len(training.steps), "optimiser step")
    steps += "; values at the end are means over the last tenth of the steps."
    notices = "\n".join(f"- {markdown(notice)}" for notice in training.notices())
    parts = ["## Training", *([notices] if notices else [])]
    return [*parts, _table(["measure", "value"], [row for row in rows if row[1] != NONE]), steps]


def _labels(labels: Iterable[LabelFacts]) -> list[str]:
    rows = [
        [
            markdown(one.stage),
            _count(one.questions),
            _value(one.cache_hit_rate, "{:.0%}"),
            _count(one.missing) + _causes(one),
            _count(one.calls),
            f"{one.prompt_tokens:,} + {one.completion_tokens:,}" if one.calls else NONE,
            f"{one.cost:.4g}" if one.calls else NONE,
            _value(one.orders_that_disagree, "{:.0%}"),
            _count(one.broken),
        ]
        for one in labels
    ]
    headings = ["stage", "questions", "from the cache", "missing", "calls", "tokens in + out", "cost", "orders differ"]
    headings.append("with control tokens")
    kept = [n for n in range(len(headings)) if n == 0 or any(row[n] not in (NONE, "0") for row in rows)]
    if len(kept) < 2:
        return []
    return ["## Labels", _table([headings[n] for n in kept], [[row[n] for n in kept] for row in rows])]


def _discriminator(facts: DiscriminatorFacts) -> list[str]:
    rows = [
        ["gold comparisons bought so far", _count(facts.bought)],
        ["prompts with gold labels", _count(facts.gold)],
        ["prompts with the discriminator's labels", _count(facts.silver)],
        ["accuracy on held-out gold", _value(facts.accuracy, "{:.1%}")],
        ["accuracy of the version before", _value(facts.previous_accuracy, "{:.1%}")],
        ["its accuracy on this round's gold", _value(facts.fresh_accuracy, "{:.1%}")],
    ]
    lines = ["## Discriminator", _table(["measure", "value"], [row for row in rows if row[1] != NONE])]
    return lines if facts.why_not is None else [*lines, f"It does not label: {markdown(facts.why_not)}"]


def _stages(facts: RoundFacts) -> list[str]:
    rows = [_stage(stage) for stage in facts.stages]
    total = ["**all**", "", clock_time(facts.seconds), "", "", ""]
    headings = ["stage", "rows", "time", "tokens", "a second", "peak memory"]
    passes = facts.training and facts.training.passes
    told = [f"In training {markdown(passes)}."] if passes else []
    return ["## Stages", _table(headings, [*rows, total], right=True), *told]


def _stage(stage: StageFacts) -> list[str]:
    rate = NONE if stage.rate is None else f"{stage.rate:,.0f} {'rows' if stage.tokens is None else 'tokens'}"
    memory = ", ".join(f"{place} {size / 2**30:.2f} GiB" for place, size in stage.memory.items())
    time = f"{stage.seconds:.1f} s" if stage.seconds < 60 else clock_time(stage.seconds)
    return [markdown(stage.name), f"{stage.rows:,}", time, _count(stage.tokens), rate, memory or NONE]


def _comparison(number: int, one: SampleComparison) -> str:
    before, after = (_value(score, "{:.3f}") for score in (one.before_score, one.after_score))
    blocks = [
        f"## {number}: score {before} → {after}",
        *("**prompt**", markdown_block(one.prompt, SHOWN_LETTERS)),
        *(f"**before**, score {before}", markdown_block(one.before, SHOWN_LETTERS)),
        *(f"**after**, score {after}", markdown_block(one.after, SHOWN_LETTERS)),
    ]
    return "\n\n".join(blocks)


def _value(value: object, form: str) -> str:
    if isinstance(value, Estimate):
        interval = None if value.low is None or value.high is None else (value.low, value.high)
        return form.format(value.mean) + _interval(interval, form)
    return NONE if value is None else form.format(value)


def _interval(interval: Sequence[Any] | None, form: str) -> str:
    """The ends of an interval; shares as whole percentages."""
    rounded = "{:.0%}" if form.endswith("%}") else form
    return f" ({rounded.format(interval[0])} to {rounded.format(interval[1])})" if interval else ""


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _causes(one: LabelFacts) -> str:
    said = {cause: f": {markdown(text, 160)}" for cause, text in one.said_by_cause.items()}
    causes = [f"{markdown(cause)} {count:,}{said.get(cause, '')}" for cause, count in one.missing_by_cause.items()]
    return f" ({', '.join(causes)})" if causes else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> str:
    rule = ["---", *(["---:"] * (len(headings) - 1) if right else ["---"] * (len(headings) - 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, rule, *rows])
