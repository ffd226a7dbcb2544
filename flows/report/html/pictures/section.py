"""The page's section of images: a grid a round, and pairs side by side. Captions are escaped by the template."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.html.panel import Runs
from flows.report.html.pictures.shown import RoundPictures, ShownImage
from flows.report.html.pictures.thumbnails import THUMBNAIL_SIZES, thumbnail
from pipeline.safe_text import one_line

# Share of the page's room, and rounds that are shown at most, evenly spaced, with the first and the newest.
ROOM, MOST_ROUNDS = 0.6, 8
CAPTION = 90  # characters
# Bytes of an image's markup besides its URL.
_MARKUP = 220


def pictures_data(runs: Runs, room: int) -> list[dict[str, Any]]:
    """Return the grids and pairs of each run's rounds, for the template; empty without images.

    ``room``: bytes that they may take; images get smaller, then rounds fewer, until they fit.
    """
    given = [(run.name if len(runs) > 1 else "", run.pictures) for run in runs if run.pictures]
    for most in (MOST_ROUNDS, 4, 2, 1):
        for side, quality in THUMBNAIL_SIZES:
            made = [
                _round(name, pictures[number], side, quality)
                for name, pictures in given
                for number in evenly_spaced(pictures, most)
            ]
            if sum(_size(one) for one in made) <= room:
                return made
    return []


def evenly_spaced(rounds: Mapping[int, object], most: int) -> list[int]:
    """Return at most ``most`` of the rounds, with the first and the newest."""
    numbers = sorted(rounds)
    if len(numbers) <= most:
        return numbers
    last = len(numbers) - 1
    return sorted({numbers[round(place * last / max(most - 1, 1))] for place in range(most)} | {numbers[last]})[-most:]


def _round(name: str, shown: RoundPictures, side: int, quality: int) -> dict[str, Any]:
    def images(given: Sequence[ShownImage]) -> list[dict[str, Any]]:
        return [{"url": thumbnail(one.png, side, quality), "score": score_words(one.score)} for one in given]

    return {
        "title": f"{name} · round {shown.round}" if name else f"round {shown.round}",
        "round": shown.round,
        "grid": [{"prompt": one_line(prompt, CAPTION), "images": images(row)} for prompt, row in shown.grid],
        "pairs": [
            {"prompt": one_line(pair.prompt, CAPTION), "images": images((pair.chosen, pair.rejected))}
            for pair in shown.pairs
        ],
    }


def score_words(score: float | None) -> str:
    """Return a score as it stands under an image; empty without one."""
    return "" if score is None else f"{score:.3g}"


def _size(one: dict[str, Any]) -> int:
    rows = [*one["grid"], *one["pairs"]]
    return sum(2 * len(row["prompt"].encode()) + sum(len(i["url"]) + _MARKUP for i in row["images"]) for row in rows)
