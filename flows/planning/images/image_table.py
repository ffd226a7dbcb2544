"""A plan of a run of images as tables for people."""

from flows.planning.arithmetic import KINDS
from flows.planning.images.image_plan import ImagePlan
from flows.planning.table import in_units, plan_console, print_columns, print_sizes, room_lines
from pipeline.types.counts import number_of

_COLUMNS = ("weights", "gradients", "optimiser", "activations", "images", "engine", "processes")


def print_image_plan(plan: ImagePlan) -> None:
    """Parameters, memory by stage, disk, time, and whether all of it fits."""
    console = plan_console()
    for line in _heading(plan):
        console.print(line, soft_wrap=True)
    print_sizes(console, plan, _COLUMNS)
    print_columns(
        console, ["a round", "passes", *(["passes/s", "seconds"] if plan.rates_from else [])], _time_rows(plan)
    )
    for line in _notes(plan):
        console.print(line, soft_wrap=True)


def _heading(plan: ImagePlan) -> list[str]:
    config, counted = plan.config, plan.round
    drawn = f"{number_of(counted.sampled, 'image')}, " if counted.sampled else ""
    beside = f"; autoencoder and text encoders: {in_units(plan.beside)}" if plan.beside else ""
    return [
        f"{config.name}: {config.mode}, {number_of(config.rounds, 'round')} of {drawn}"
        f"{number_of(counted.examples, 'example')} at most; {number_of(counted.evaluated, 'image')} to evaluate",
        f"parameters: {plan.network.total:,}, {plan.network.trained:,} of them trained{beside}",
        *plan.notes,
        "",
    ]


def _time_rows(plan: ImagePlan) -> list[list[str]]:
    passes, took = plan.work, plan.seconds
    if plan.rates_from is None:
        return [[name, f"{passes[name]:,.0f}"] for name in KINDS]
    rows = []
    for name in KINDS:
        spent = took[name]
        shown = ["", "?"] if spent is None else [f"{passes[name] / spent:,.0f}" if spent else "", f"{spent:,.1f}"]
        rows.append([name, f"{passes[name]:,.0f}", *shown])
    known = [spent for spent in took.values() if spent is not None]
    return [*rows, ["all that is known", "", "", f"{sum(known):,.1f}"]]


def _notes(plan: ImagePlan) -> list[str]:
    lines = ["A pass is one image through the network; labelling counts images."]
    if plan.rates_from is None:
        lines.append("No rate is known: --probe measures them here, --rates gives them.")
    else:
        lines.append(f"Rates are {plan.rates_from}. Process starts, encoding and files come on top.")
    return ["", *lines, *room_lines(plan)]
