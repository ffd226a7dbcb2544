"""Panels of the training data, its labels, and the time and cost. A panel without numbers is left out."""

from collections.abc import Callable, Iterable, Sequence

from flows.report.charts import Histogram
from flows.report.facts import RoundFacts
from flows.report.html.drawing.bars import bars_figure
from flows.report.html.drawing.figures import Line, histogram_figure, lines_figure
from flows.report.html.panel import Panel, Runs, run_label
from flows.report.html.run_facts import RunFacts

# Most histograms in one figure.
OVERLAID = 4
# Seconds of the units that times are shown in, the largest first.
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def data_panels(runs: Runs) -> list[Panel]:
    """Panels of what rounds trained on, and how it was labelled."""
    found: list[Panel | None] = []
    for run in runs:
        of_run = f" · {run.name}" if len(runs) > 1 else ""
        found += [_yield(run, of_run), _margins(run, of_run), _dispersion(run, of_run)]
    found += [_labelling(runs), _discriminator(runs), _cost(runs)]
    return [panel for panel in found if panel is not None]


def time_panels(runs: Runs) -> list[Panel]:
    """Time of each stage; one bar per round, or with several runs one bar per run."""
    if len(runs) == 1:
        bars = [(str(facts.round), facts.stages) for facts in runs[0].rounds]
    else:
        bars = [(run.name, tuple(stage for facts in run.rounds for stage in facts.stages)) for run in runs]
    names = dict.fromkeys(stage.name for _, stages in bars for stage in stages)
    longest = max((sum(stage.seconds for stage in stages) for _, stages in bars), default=0.0)
    size, unit = next(((size, unit) for size, unit in _UNITS if longest >= 2 * size), _UNITS[-1])
    stacks = [
        (name.replace("_", " "), [sum(one.seconds for one in stages if one.name == name) / size for _, stages in bars])
        for name in names
    ]
    if not stacks:
        return []
    x_title = "round" if len(runs) == 1 else ""
    figure = bars_figure([label for label, _ in bars], stacks, x_title=x_title)
    return [Panel("Time", f"{unit} per stage", figure, wide=True)]


def _yield(run: RunFacts, of_run: str) -> Panel | None:
    rounds = [facts for facts in run.rounds if facts.pairs is not None]
    if not rounds:
        return None
    pairs = [facts.pairs for facts in rounds if facts.pairs is not None]
    causes = list(dict.fromkeys(cause for one in pairs for cause in one.dropped))
    stacks = [("trained on", [float(one.own) for one in pairs])]
    if any(one.rows > one.own for one in pairs):
        stacks.append(("replayed or anchor", [float(one.rows - one.own) for one in pairs]))
    stacks += [(cause.replace("_", " "), [float(one.dropped.get(cause, 0)) for one in pairs]) for cause in causes]
    figure = bars_figure([str(facts.round) for facts in rounds], stacks, x_title="round")
    return Panel(f"Yield{of_run}", f"{pairs[0].kind}s, and what was dropped by cause", figure)


def _margins(run: RunFacts, of_run: str) -> Panel | None:
    found = [(f.round, f.pairs.margins) for f in run.rounds if f.pairs is not None and f.pairs.margins.counts]
    return _histograms(f"Margins{of_run}", "share of pairs", found, "score of chosen less score of rejected")


def _dispersion(run: RunFacts, of_run: str) -> Panel | None:
    found = [(f.round, f.pairs.dispersion) for f in run.rounds if f.pairs is not None and f.pairs.dispersion.counts]
    panel = _histograms(f"Dispersion{of_run}", "share of pairs", found, "−log of the reference's normalised entropy")
    if panel is None:
        return None
    return Panel(panel.title, panel.unit, panel.figure, "Large where the reference is certain, and people agree.")


def _histograms(title: str, unit: str, found: Sequence[tuple[int, Histogram]], x_title: str) -> Panel | None:
    if not found:
        return None
    places = sorted({round(place * (len(found) - 1) / (OVERLAID - 1)) for place in range(OVERLAID)})
    shown = [(f"round {found[place][0]}", found[place][1]) for place in places]
    return Panel(title, unit, histogram_figure(shown, x_title=x_title))


def _labelling(runs: Runs) -> Panel | None:
    """Panel of how reliable the labels are."""
    lines = _per_round(
        runs,
        [
            ("orders that disagree", lambda facts: _first(one.orders_that_disagree for one in facts.labels)),
            ("spread of the ensemble", lambda facts: _first(one.disagreement for one in facts.labels)),
        ],
    )
    if not lines:
        return None
    note = "Orders: share of pairs whose winner changes when the two responses swap places."
    return Panel("Agreement of labels", "", lines_figure(lines, x_title="round", whole=True), note)


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _discriminator(runs: Runs) -> Panel | None:
    def accuracy(facts: RoundFacts) -> float | None:
        return None if facts.discriminator is None else facts.discriminator.accuracy

    def fresh(facts: RoundFacts) -> float | None:
        return None if facts.discriminator is None else facts.discriminator.fresh_accuracy

    lines = _per_round(runs, [("held-out gold", accuracy), ("this round's gold, not yet learned", fresh)])
    if not lines:
        return None
    figure = lines_figure(lines, x_title="round", y_format=".0%", level=0.5, whole=True)
    return Panel("Discriminator's accuracy", "share of comparisons", figure)


def _cost(runs: Runs) -> Panel | None:
    if not any(facts.label_cost for run in runs for facts in run.rounds):
        return None
    lines = _per_round(runs, [("cost", lambda facts: facts.label_cost)])
    return (
        Panel("Cost of labels", "currency of the config", lines_figure(lines, x_title="round", whole=True))
        if lines
        else None
    )


def _per_round(runs: Runs, curves: Sequence[tuple[str, Callable[[RoundFacts], float | None]]]) -> list[Line]:
    lines = []
    for number, run in enumerate(runs):
        for place, (label, read) in enumerate(curves):
            known = [(facts.round, value) for facts in run.rounds if (value := read(facts)) is not None]
            if known:
                colour = number if len(runs) > 1 else place
                name = run_label(run, label, len(runs) > 1, len(curves) > 1)
                lines.append(Line(name, [x for x, _ in known], [y for _, y in known], colour, dash=place))
    return lines
