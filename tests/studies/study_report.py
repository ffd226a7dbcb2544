"""What a study of a published claim found: claims beside their bars, tables, a picture; printed, and kept."""

import argparse
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import torch

from tests.benchmarks.recorded_runs import circumstances, section, table

RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURES = Path(__file__).with_name("pictures")


@dataclass(frozen=True, slots=True)
class Claim:
    """What was claimed, the bar, what was measured, and whether it held."""

    said: str
    bar: str
    measured: str
    held: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one line, with the standard error of each if it is known."""

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: curves by name."""

    title: str
    across: str
    up: str
    curves: Mapping[str, Curve]
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a study says; ``sentences`` say in plain words whether the claim held."""

    claims: Sequence[Claim]
    tables: Mapping[str, str]
    panels: Sequence[Panel]
    sentences: Sequence[str] = field(default=())


Study = Callable[[Sequence[int]], Report]


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; 0 for a single value."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean ± standard error."""
    mean, error = mean_error(values)
    return f"{mean:{form}} ± {error:{form.lstrip('+')}}"


def curve(x: Sequence[float], runs: Sequence[Sequence[float]]) -> Curve:
    """The mean over ``runs`` [seed][point] at each point."""
    both = [mean_error(values) for values in zip(*runs, strict=True)]
    return Curve(x, [mean for mean, _ in both], [error for _, error in both])


def markdown(report: Report) -> str:
    """Claims first, then the tables."""
    rows = [[one.said, one.bar, one.measured, "yes" if one.held else "**NO**"] for one in report.claims]
    parts = [table(["claim", "bar", "measured", "held"], rows)]
    parts += [f"{title}\n\n{body}" for title, body in report.tables.items()]
    return "\n\n".join([*parts, *report.sentences])


def draw(panels: Sequence[Panel], form: str = "svg") -> bytes:
    """The picture as a file's content."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefloop"}):
        figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for number, (name, line) in enumerate(panel.curves.items()):
                look = {"color": f"C{number % 10}", "label": name, "marker": "o^sDv<>"[number % 7], "markersize": 3.5}
                axes.errorbar(line.x, line.y, line.error, linewidth=1.2, linestyle=("-", "--")[number % 2], **look)
            axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
            if panel.logarithmic:
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
        content = BytesIO()
        figure.savefig(content, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue() if form != "svg" else _small(content.getvalue())


def _small(svg: bytes) -> bytes:
    """Without comments and indentation, in tenths of a point, and each style written once: half as large."""
    plain = re.sub(rb"<!--.*?-->|<metadata>.*?</metadata>", b"", svg, flags=re.DOTALL)
    rounded = re.sub(rb"\d+\.\d{2,}", lambda found: b"%.1f" % float(found[0]), plain)
    styles = list(dict.fromkeys(re.findall(rb' style="([^"]*)"', rounded)))
    for number, style in enumerate(styles):
        rounded = rounded.replace(b' style="' + style + b'"', b' class="s%d"' % number)
    rules = b"".join(b".s%d{%s}" % (number, style) for number, style in enumerate(styles))
    return re.sub(rb"\s*\n\s*", b"\n", rounded.replace(b"</style>", rules + b"</style>", 1))


def main(study: Study, name: str, title: str, seeds: int, fewest: int = 2) -> None:
    """Run ``study`` from the command line: print, and record if asked for."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help=f"{fewest} seeds")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md, and draw its picture")
    parser.add_argument("--plot", type=Path, help="draw in this file: .svg, .png, .pdf")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = study(range(fewest if given.quick else given.seeds))
    text = markdown(report)
    print(text)
    if given.plot is not None:
        given.plot.write_bytes(draw(report.panels, given.plot.suffix.lstrip(".")))
    if given.record:
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.svg").write_bytes(draw(report.panels))
        facts = circumstances(f"tests.studies.{name}")
        facts["date"] = f"{facts['date'].split()[0]}: {title}"
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(section(facts, f"{text}\n\n![{title}](pictures/{name}.svg)"))
