"""Writes RUN/report.html from the run folder."""

from pathlib import Path

from flows.keys import ITERATIVE_STAGES, OFFLINE_STAGES, START_STAGES
from flows.table import read_rounds
from pipeline.config import RunConfig
from pipeline.configfile import dump_config
from pipeline.report import Comparison, render_report
from pipeline.rows import read_groups
from pipeline.store import Manifest, RunFolder, write_text
from pipeline.types import Group

SHOWN = 12


def write_report(run: RunFolder, config: RunConfig) -> Path:
    """Render the rounds that are evaluated so far; returns the file."""
    rounds = read_rounds(run.root)
    page = render_report(
        config.name,
        dump_config(config),
        rounds,
        _comparisons(run, rounds[-1]["round"]) if len(rounds) > 1 else [],
        _manifests(run),
    )
    file = run.root / "report.html"
    write_text(file, page)
    return file


def _manifests(run: RunFolder) -> list[tuple[str, Manifest]]:
    names = (*START_STAGES, *ITERATIVE_STAGES, *OFFLINE_STAGES, "average")
    stages = [run.stage(round_, name) for round_ in run.rounds() for name in dict.fromkeys(names)]
    manifests = [(stage.title, stage.manifest()) for stage in stages]
    return [(title, manifest) for title, manifest in manifests if manifest is not None]


def _comparisons(run: RunFolder, last: int) -> list[Comparison]:
    before, after = _greedy(run, 0), _greedy(run, last)
    shared = [key for key in before if key in after][:SHOWN]
    return [
        Comparison(
            prompt="\n".join(message.content for message in before[key].prompt.messages),
            before=before[key].responses[0].text,
            before_score=_score(before[key]),
            after=after[key].responses[0].text,
            after_score=_score(after[key]),
        )
        for key in shared
    ]


def _greedy(run: RunFolder, round_: int) -> dict[str, Group]:
    return {group.prompt.id: group for group in read_groups(run.stage(round_, "evaluation").folder / "greedy")}


def _score(group: Group) -> str:
    score = group.scores[0] if group.scores else None
    return "–" if score is None else f"{score:.2f}"
