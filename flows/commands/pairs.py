"""``prefloop pairs``: show the pairs that a round trains on, or would train on; write them as a data set."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from flows.report.charts import Histogram
from flows.report.pair_preview import Preview, preview
from flows.run_folder.ancestry import SECOND_SAMPLES
from flows.stages.context import Context, policy_chat
from flows.stages.images.exported import export_image_pairs
from flows.stages.pairs import own
from flows.stages.replay import OWN
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.models.chat import Chat
from pipeline.safe_text import visible
from pipeline.storage.atomic import json_line, write_text
from pipeline.storage.rows import read_preference_file, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Pair, Preference, Response
from pipeline.types.counts import number_of

_BAR = 40
SHOWN_CHARACTERS = 600
READ = ("pairing", "replay", "loss")


def show_pairs(root: Path, settings: list[str], round_: int | None, recompute: bool) -> None:
    """Print the yield, histograms and ten examples of a round of the run in ``root``; writes nothing.

    With ``recompute``, make the pairs again from labels (offline: from the data) under ``settings``, even if none were
    written; replay is left out. Else show the pairs that the round's pairs stage wrote.

    Raises:
        UserError: no such run, or nothing in it to make pairs from; settings without ``recompute``, or from
            sections other than ``pairing``, ``replay`` and ``loss``.
    """
    run = RunFolder.existing(root)
    if settings and not recompute:
        raise UserError(f"{settings[0]}: settings are for --preview; without it, the written pairs are shown")
    other = [item for item in settings if item.split(".")[0].split("=")[0] not in READ]
    if other:
        raise UserError(f"{other[0]}: --preview takes only settings of {', '.join(READ)}")
    config = run.config(settings)
    context = Context(run, config)
    number = _newest(run, config, recompute) if round_ is None else round_
    _require(run, config, number, recompute)
    if recompute:
        counted = Counter[str]()
        made = [*own(context, number, counted)]
        dropped = dict(counted)
    else:
        stage = run.stage(number, "pairs")
        made, dropped = [*read_preference_rows(stage.folder)], _dropped(stage.require().metrics)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(f"{root.name}, round {number}", style="bold", markup=False, highlight=False)
    _print_yield(console, len(made), dropped)
    if made:
        print_preview(console, preview(made, config.seed, images=config.modality == "image"))


def export_pairs(root: Path, out: Path, round_: int | None) -> str:
    """Write the pairs of a round (None: of all rounds) of the run in ``root`` to the JSONL file ``out``; say how many.

    Every row is one that ``pairs.path`` reads: pairs, groups or marked responses, as texts with their thoughts. Images
    are files in a folder beside ``out``.

    Raises:
        UserError: no such run, no pairs yet, or ``out`` exists.
    """
    run = RunFolder.existing(root)
    if out.exists():
        raise UserError(f"{out}: exists; --export writes to a new file")
    numbers = [number for number in run.rounds() if run.stage(number, "pairs").manifest() is not None]
    if not numbers or (round_ is not None and round_ not in numbers):
        raise UserError(f"--round: {root} has no pairs{'' if round_ is None else f' of round {round_}'} yet")
    config = run.config()
    wanted = numbers if round_ is None else [round_]
    if config.modality == "image":
        return export_image_pairs(run, config, out, wanted)
    chat = policy_chat(config, Context(run, config).policy_path(0))
    lines = [
        json_line(_plain_row(row, chat))
        for number in wanted
        for row in read_preference_file(run.stage(number, "pairs").folder / OWN)
    ]
    write_text(out, "".join(lines))
    return f"{number_of(len(lines), 'row')} of round {', '.join(map(str, wanted))}: {out}"


def _plain_row(row: Preference, chat: Chat) -> dict[str, JsonValue]:
    turns: list[JsonValue] = [
        {"role": message.role, "content": message.content, **message.fields}
        for message in row.prompt.messages
        if message.is_turn
    ]
    plain: dict[str, JsonValue] = {"prompt": turns}
    plain |= {message.role: message.value for message in row.prompt.messages if not message.is_turn}

    def said(response: Response) -> str:
        return chat.decode(response.token_ids) if response.thinking_tokens else response.text

    match row:
        case Pair():
            scores = {"chosen_score": row.chosen_score, "rejected_score": row.rejected_score}
            known: dict[str, JsonValue] = {name: score for name, score in scores.items() if score is not None}
            return {**plain, "chosen": said(row.chosen), "rejected": said(row.rejected), **known}
        case Group():
            texts: list[JsonValue] = [said(response) for response in row.responses]
            return {**plain, "responses": texts, "rewards": [*row.scores]}
        case _:
            return {**plain, "completion": said(row.response), "label": row.desirable}


def _newest(run: RunFolder, config: RunConfig, recompute: bool) -> int:
    source = _source(config) if recompute else "pairs"
    found = [number for number in run.rounds() if run.stage(number, source).manifest() is not None]
    if not found:
        hint = "" if recompute else "; --preview makes them from existing labels"
        raise UserError(f"{run.root}: no round has {source} yet{hint}")
    return 1 if source == "data" else found[-1]


def _source(config: RunConfig) -> str:
    if config.mode == "offline":
        return "data"
    return "labels" if config.pairing.second is None else SECOND_SAMPLES


def _require(run: RunFolder, config: RunConfig, round_: int, recompute: bool) -> None:
    stage = run.stage(round_, "pairs")
    if recompute:
        stage = run.stage(0, "policy") if config.mode == "offline" else run.stage(round_, _source(config))
    if stage.manifest() is None:
        raise UserError(f"{run.root}: {stage.title} is not there yet")
    if config.mode == "offline" and not 1 <= round_ <= config.rounds:
        raise UserError(f"--round: {round_}; the run has rounds 1 to {config.rounds}")


def _dropped(metrics: object) -> dict[str, int]:
    counts = metrics.get("dropped") if isinstance(metrics, dict) else None
    return {str(cause): int(count) for cause, count in counts.items()} if isinstance(counts, dict) else {}


def _print_yield(console: Console, rows: int, dropped: dict[str, int]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_row("kept", str(rows))
    for cause, count in dropped.items():
        if count:
            table.add_row(cause.replace("_", " "), str(count))
    console.print(table)


def print_preview(console: Console, seen: Preview) -> None:
    """Print histograms and examples; text from models and data cannot control the terminal."""
    if seen.margins.counts:
        _print_histogram(console, "margin (score difference)", seen.margins)
    for name, lengths in seen.lengths.items():
        _print_histogram(console, f"{name}: tokens", lengths)
    if seen.longer_chosen is not None:
        console.print(f"\nthe longer response is chosen in {seen.longer_chosen:.1%} of pairs", highlight=False)
    for number, row in enumerate(seen.examples, 1):
        _print_example(console, number, row, images=seen.images)


def _print_histogram(console: Console, title: str, histogram: Histogram) -> None:
    console.print(f"\n{title}", highlight=False, markup=False)
    most = max(histogram.counts)
    for (low, high), count in zip(pairwise(histogram.edges), histogram.counts, strict=True):
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        console.print(f"{low:>9.4g} to {high:<9.4g} {bar} {count}", highlight=False, markup=False)


def _print_example(console: Console, number: int, row: Preference, *, images: bool) -> None:
    prompt = "\n".join(f"{message.role}: {message.shown}" for message in row.prompt.shown)
    console.print(f"\n{number}. {_shown(prompt)}", highlight=False, markup=False)
    match row:
        case Pair():
            sides = [("chosen", row.chosen, row.chosen_score), ("rejected", row.rejected, row.rejected_score)]
        case Group():
            ranked = sorted(zip(row.responses, row.scores, strict=True), key=lambda item: -(item[1] or 0.0))
            sides = [(str(place), response, score) for place, (response, score) in enumerate(ranked, 1)]
        case _:
            sides = [("good" if row.desirable else "bad", row.response, None)]
    for name, response, score in sides:
        console.print(_line(name, response, score, images=images), highlight=False, markup=False)


def _line(name: str, response: Response, score: float | None, *, images: bool) -> str:
    if images:
        return f"   {name}: image {response.text}" + ("" if score is None else f", score {score:.3g}")
    facts = [number_of(len(response.token_ids), "token"), *([] if score is None else [f"score {score:.3g}"])]
    end = ", cut" if response.finish_reason == "length" else ""
    return f"   {name} ({', '.join(facts)}{end}): {_shown(response.text)}"


def _shown(text: str) -> str:
    # Indented, so that no line of a response looks like a line of prefloop.
    return visible(text, SHOWN_CHARACTERS).replace("\n", "\n      ")
