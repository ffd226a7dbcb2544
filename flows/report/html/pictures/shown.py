"""Images that a page shows of each round: the same prompts and seeds in all rounds, and pairs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures
from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Pair, Preference, Prompt, Response

# Prompts of a grid, images of each, and pairs of a round.
GRID_ROWS, GRID_COLUMNS, PAIRS_SHOWN = 8, 4, 6


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image's file, and its score, which is None if the labeller gave none."""

    png: bytes
    score: float | None


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A pair of the round's training data."""

    prompt: str
    chosen: ShownImage
    rejected: ShownImage


@dataclass(frozen=True, slots=True)
class RoundPictures:
    """What is shown of one round.

    Attributes:
        grid: prompts of the evaluation, each with images from the same seeds in every round.
        pairs: some pairs that the round trained on.
    """

    round: int
    grid: tuple[tuple[str, tuple[ShownImage, ...]], ...]
    pairs: tuple[ShownPair, ...]


def round_pictures(
    run: RunFolder, config: RunConfig, round_: int, rows: int = GRID_ROWS, pairs: int = PAIRS_SHOWN
) -> RoundPictures:
    """Read what is shown of ``round_``; nothing of stages that are missing, or of a run of texts.

    Raises:
        RunError: a file of the round cannot be read.
    """
    if config.modality != "image":
        return RoundPictures(round_, (), ())
    return RoundPictures(round_, _grid(run, round_, rows), _pairs(run, round_, pairs))


def _grid(run: RunFolder, round_: int, rows: int) -> tuple[tuple[str, tuple[ShownImage, ...]], ...]:
    """The first prompts of the evaluation: of a model of classes, the first of each class, with images of several."""
    folder = run.stage(round_, "evaluation").folder / "sampled"
    drawn = run.stage(round_, "evaluation_samples").folder / "sampled" / IMAGES
    if not folder.is_dir() or not drawn.is_dir():
        return ()
    chosen: dict[tuple[int, ...], tuple[str, list[tuple[Response, float | None]]]] = {}
    for group in read_groups(folder):
        if group.prompt_ids not in chosen and len(chosen) == rows:
            continue
        cells = chosen.setdefault(group.prompt_ids, (_words(group.prompt), []))[1]
        cells += islice(_scored(group), GRID_COLUMNS - len(cells))
    files = StoredPictures([drawn])
    return tuple(
        (prompt, tuple(ShownImage(files[response.text], score) for response, score in cells))
        for prompt, cells in chosen.values()
    )


def _scored(group: Group) -> Iterable[tuple[Response, float | None]]:
    scores: Sequence[float | None] = group.scores or (None,) * len(group.responses)
    return zip(group.responses, scores, strict=True)


def _pairs(run: RunFolder, round_: int, most: int) -> tuple[ShownPair, ...]:
    """Evenly spaced pairs of the round; of groups, the best and the worst image."""
    folder = run.stage(round_, "pairs").folder
    places = [place for place in _places(run, round_) if place.is_dir()]
    if not (folder / "rows.parquet").is_file() or not places:
        return ()
    sides = [found for row in read_preference_rows(folder) if (found := _sides(row)) is not None]
    files = StoredPictures(places)
    step = max(1, len(sides) // most)
    return tuple(
        ShownPair(prompt, ShownImage(files[chosen.text], high), ShownImage(files[rejected.text], low))
        for prompt, (chosen, high), (rejected, low) in sides[::step][:most]
        if chosen.text in files and rejected.text in files
    )


def _places(run: RunFolder, round_: int) -> list[Path]:
    """Folders of images that a round's pairs may name: its samples, those of earlier rounds, and the data set's."""
    samples = [run.stage(number, "samples").folder / IMAGES for number in range(round_, 0, -1)]
    return [*samples, run.stage(0, "data").folder / IMAGES]


_Side = tuple[Response, float | None]


def _sides(row: Preference) -> tuple[str, _Side, _Side] | None:
    match row:
        case Pair():
            return _words(row.prompt), (row.chosen, row.chosen_score), (row.rejected, row.rejected_score)
        case Group():
            known = [(response, score) for response, score in _scored(row) if score is not None]
            ranked = sorted(known, key=lambda one: -(one[1] or 0.0))
            return (_words(row.prompt), ranked[0], ranked[-1]) if len(ranked) > 1 else None
        case _:
            return None


def _words(prompt: Prompt) -> str:
    return "\n".join(message.shown for message in prompt.shown)


def pictures_of(run: RunFolder, config: RunConfig, rounds: Iterable[int]) -> Mapping[int, RoundPictures]:
    """Read what is shown of each of ``rounds`` that has something to show."""
    found = ((number, round_pictures(run, config, number)) for number in rounds)
    return {number: shown for number, shown in found if shown.grid or shown.pairs}
