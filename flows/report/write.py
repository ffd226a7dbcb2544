"""Writes RUN/report.html, or one page for several runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from flows.report.findings.prompt_changes import worse_in
from flows.report.findings.verdicts import gate_limits
from flows.report.gather import evaluated_rounds, round_facts
from flows.report.html import RunFacts, Sample, Samples, render_report
from flows.report.html.pictures.shown import pictures_of
from pipeline.config import RunConfig
from pipeline.config.files import dump_config
from pipeline.config.loss.presets import DOCUMENTATION, NamedComposition, preset_names
from pipeline.errors import UserError
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from pipeline.types.counts import number_of

# Limits of the samples: held-out prompts, rounds, characters of one response, and of the whole page.
_PROMPTS, ROUNDS, RESPONSE, ALL = 100, 8, 1500, 1_000_000


def write_report(run: RunFolder, config: RunConfig) -> Path:
    """Render the run so far; return the file."""
    file = run.root / "report.html"
    write_text(file, render_report([run_facts(run, config)]))
    return file


def report_runs(roots: Sequence[Path], output: Path | None) -> Path:
    """Write the page of one run, or of several side by side; return the file.

    Raises:
        UserError: not a run folder, several without ``output``, or a place that cannot be written.
    """
    if len(roots) > 1 and output is None:
        raise UserError("report: several runs have no folder in common; give the page's place with --output FILE")
    runs = [RunFolder.existing(root) for root in roots]
    found = [(run, run.config()) for run in runs]
    if output is None:
        return write_report(*found[0])
    names = _names([config.name for _, config in found], roots)
    share = ALL // len(found)
    page = render_report(
        [run_facts(run, config, name, share) for (run, config), name in zip(found, names, strict=True)]
    )
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"--output: {output}: cannot write there ({error.strerror})") from None
    return output


def run_facts(run: RunFolder, config: RunConfig, name: str | None = None, characters: int = ALL) -> RunFacts:
    """Everything that a page shows about one run; samples have at most ``characters`` characters in all."""
    rounds = tuple(round_facts(run, config, round_, comparisons=0) for round_ in run.rounds())
    manifests = [manifest for n in run.rounds() for s in _stages(run, n) if (manifest := run.stage(n, s).manifest())]
    versions: dict[str, str] = {}
    for manifest in sorted(manifests, key=lambda manifest: manifest.finished):
        versions |= manifest.versions
    return RunFacts(
        name=name or config.name,
        config=dump_config(config),
        settings=dict(_leaves(config.model_dump(mode="json"))),
        given=given_settings(config),
        limits=() if config.gate is None else tuple(gate_limits(config.gate)),
        headline=_headline(config),
        rounds=rounds,
        planned=config.rounds,
        versions=versions,
        finished=max((manifest.finished for manifest in manifests), default="").replace("T", " ").replace("Z", " UTC"),
        samples=_samples(run, characters),
        worse=worse_in(run, evaluated[-1]) if (evaluated := evaluated_rounds(run)) else None,
        pictures=pictures_of(run, config, run.rounds()),
    )


def _leaves(plain: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, str(plain)


def given_settings(config: RunConfig) -> frozenset[str]:
    """The settings, as ``a.b``, that are not at their defaults; those of a loss are its preset's defaults."""
    changed = [name for name, _ in _leaves(config.model_dump(mode="json", exclude_defaults=True))]
    # A component's kind decides which settings there are; it may be the default of its class, not of its place.
    kinds = [name for name, _ in _leaves(config.model_dump(mode="json")) if name.endswith(".kind")]
    outside = {name for name in (*changed, *kinds) if not name.startswith("loss.")}
    named = config.loss.preset in preset_names()
    usual = dict(_leaves(NamedComposition(preset=config.loss.preset).model_dump(mode="json"))) if named else {}
    ours = dict(_leaves(config.loss.model_dump(mode="json")))
    of_loss = {f"loss.{name}" for name, value in ours.items() if usual.get(name) != value and name not in DOCUMENTATION}
    return frozenset({*outside, "loss.preset", *of_loss})


def _stages(run: RunFolder, round_: int) -> list[str]:
    folder = run.stage(round_, "data").folder.parent
    return sorted(path.parent.name for path in folder.glob("*/manifest.json") if path.parent.suffix != ".partial")


def _headline(config: RunConfig) -> str:
    training = config.training
    parts = [
        config.mode,
        number_of(config.rounds, "round"),
        f"loss {config.loss.preset}, β = {config.loss.inputs.beta:g}",
        f"reference {training.reference}",
        f"learning rate {training.learning_rate:g}",
        *([] if config.scorer is None else [f"labels by {config.scorer.kind}"]),
        f"seed {config.seed}",
    ]
    return " · ".join(parts)


def _names(names: Sequence[str], roots: Sequence[Path]) -> list[str]:
    """Names that distinguish the runs: from their configs, else from their folders, else their paths."""
    for choice in (names, [root.resolve().name for root in roots], [str(root) for root in roots]):
        if len(set(choice)) == len(choice):
            return list(choice)
    return [f"{root} ({number})" for number, root in enumerate(roots, 1)]


def _samples(run: RunFolder, characters: int) -> Samples:
    """Greedy responses from a few evenly spaced rounds, including the first and the newest."""
    rounds = evaluated_rounds(run)
    last = len(rounds) - 1
    places = sorted({round(place * last / (ROUNDS - 1)) for place in range(ROUNDS)}) if last > 0 else [*range(last + 1)]
    shown = [rounds[place] for place in places]
    found: dict[str, tuple[str, dict[int, tuple[str, float | None]]]] = {}
    for round_ in shown:
        for number, group in enumerate(read_groups(run.stage(round_, "evaluation").folder / "greedy")):
            if number == _PROMPTS:
                break
            prompt = "\n".join(message.shown for message in group.prompt.shown)
            score = group.scores[0] if group.scores else None
            cells = found.setdefault(group.prompt.id, (prompt, {}))[1]
            cells[round_] = (_cut(group.responses[0].text), score)
    kept = _within(characters, [Sample(_cut(prompt), responses) for prompt, responses in found.values()])
    return Samples(tuple(kept), _held_out(run, shown[0]) if shown else 0)


def _within(characters: int, samples: Sequence[Sample]) -> list[Sample]:
    kept = []
    for sample in samples:
        characters -= len(sample.prompt) + sum(len(text) for text, _ in sample.responses.values())
        if characters < 0:
            break
        kept.append(sample)
    return kept


def _cut(text: str) -> str:
    return text if len(text) <= RESPONSE else text[:RESPONSE] + " …"


def _held_out(run: RunFolder, round_: int) -> int:
    folder = run.stage(round_, "evaluation").folder / "greedy"
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
