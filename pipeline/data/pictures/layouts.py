"""Layouts of public sets of image preferences: which cells hold images, and what the others say of them. Torch-free.

Pick-a-Pic (arXiv:2305.01569): two images and a share of the preference for each, 0, 1/2 or 1. HPD v2
(arXiv:2306.09341): for training two paths and 1 for the preferred one, for tests several and their ranks. ImageReward
(arXiv:2304.05977): one image a row, rank 1 the best of its prompt. Diffusion-KTO (arXiv:2404.04465): one image a row,
1 if it was preferred.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from pydantic import JsonValue

from pipeline.config.data.images import ImageColumns, ImageLayout
from pipeline.data.forms.cells import FaultError, absent, number, optional_number, plain_answer, required, truth
from pipeline.data.forms.paths import find
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText
from pipeline.types.counts import number_of

# Names an image of the row: from a cell, and the name of its column.
NameImage = Callable[[JsonValue, str], str]
_Values = dict[str, JsonValue]
_PROMPTS = ("prompt", "caption", "text")
_IMAGES = ("image", "file_path", "image_path", "file_name", "file", "path")
_HPD_TWO, _HPD_MANY = ("file_path", "human_preference"), ("image_path", "rank")


def layout_of(values: Mapping[str, JsonValue], columns: ImageColumns) -> ImageLayout | None:
    """Tell the layout by a row's columns; None if it is none of them."""
    has = values.keys()
    if {"jpg_0", "jpg_1", "label_0", "label_1"} <= has:
        return "pickapic"
    if "human_preference" in has or ({*_HPD_MANY} <= has and isinstance(values["image_path"], list)):
        return "hpdv2"
    if "rank" in has and "prompt_id" in has:
        return "imagereward"
    if {columns.chosen, columns.rejected} <= has:
        return "pairs"
    if image_column(values, columns) in has:
        return "marked" if columns.label in has else "captions"
    return None


def image_column(values: Mapping[str, JsonValue], columns: ImageColumns) -> str:
    """Return the column with the image of a row that has one."""
    return columns.image or next((name for name in _IMAGES if name in values), _IMAGES[0])


def prompt_in(values: _Values, columns: ImageColumns) -> Prompt:
    """Return the row's prompt. Raises ``FaultError`` if it has none."""
    column = columns.prompt or next((name for name in _PROMPTS if name in values), _PROMPTS[0])
    text = required(values, column)
    if not isinstance(text, str):
        raise FaultError(f"{column}: must be a text, not {type(text).__name__}")
    return Prompt((Message("user", text),), answer=plain_answer(values, columns.answer))


def image_preference(values: _Values, layout: ImageLayout, columns: ImageColumns, name: NameImage) -> TextPreference:
    """Return the row's preference, with names in the place of responses. Raises ``FaultError``."""
    prompt = prompt_in(values, columns)
    match layout:
        case "pickapic":
            return _pickapic(prompt, values, name)
        case "hpdv2":
            return _hpdv2(prompt, values, name)
        case "imagereward":
            return _imagereward(prompt, values, columns, name)
        case "pairs":
            chosen, rejected = (name(required(values, one), one) for one in (columns.chosen, columns.rejected))
            soft = optional_number(values, columns.soft_label)
            return _pair(prompt, chosen, rejected, 1.0 if soft is None else soft, columns.soft_label)
        case "marked":
            column = image_column(values, columns)
            return UnpairedText(prompt, name(required(values, column), column), _mark(values, columns.label))
        case "captions":
            raise FaultError("an image and its caption prefer nothing; they are for a warm start, as prompts")
    assert_never(layout)


def captioned_image(values: _Values, columns: ImageColumns, name: NameImage) -> str:
    """Return the name of the image of a row with a caption."""
    column = image_column(values, columns)
    return name(required(values, column), column)


def _pair(prompt: Prompt, one: str, other: str, first_wins: float, column: str) -> TextPair:
    """Return the pair with the likelier winner as chosen; a tie keeps the order."""
    if not 0 <= first_wins <= 1:
        raise FaultError(f"{column}: {first_wins:g}; must be from 0 to 1")
    if first_wins < 0.5:
        return TextPair(prompt, other, one, soft_label=1 - first_wins)
    return TextPair(prompt, one, other, soft_label=first_wins)


def _pickapic(prompt: Prompt, values: _Values, name: NameImage) -> TextPair:
    if "has_label" in values and not absent(values["has_label"]) and not _mark(values, "has_label"):
        raise FaultError("has_label: false, so nobody compared the two", "unlabelled")
    first, second = (optional_number(values, label) for label in ("label_0", "label_1"))
    if first is None or second is None:
        raise FaultError("label_0, label_1: no labels", "unlabelled")
    if abs(first + second - 1) > 1e-6:
        raise FaultError(f"label_0 and label_1: {first:g} and {second:g}; they must sum to 1")
    one, other = (name(required(values, column), column) for column in ("jpg_0", "jpg_1"))
    return _pair(prompt, one, other, first, "label_0")


def _hpdv2(prompt: Prompt, values: _Values, name: NameImage) -> TextPair | TextGroup:
    if "human_preference" not in values:
        images, ranks = _names(values, "image_path", name), _numbers(values, "rank")
        return _group(prompt, images, [-rank for rank in ranks], "rank")
    column = "file_path" if "file_path" in values else "image_path"
    images, marks = _names(values, column, name), _numbers(values, "human_preference")
    if len(images) != 2 or len(marks) != 2:
        raise FaultError(f"{column}, human_preference: {len(images)} and {len(marks)} values; each must have 2")
    if {*marks} - {0, 1}:
        raise FaultError(f"human_preference: {marks[0]:g}, {marks[1]:g}; each must be 0 or 1")
    return _pair(prompt, images[0], images[1], (1 + marks[0] - marks[1]) / 2, "human_preference")


def _imagereward(prompt: Prompt, values: _Values, columns: ImageColumns, name: NameImage) -> TextGroup:
    column = image_column(values, columns)
    images, rated = _names(values, column, name), columns.rating or "rank"
    numbers = _numbers(values, rated)
    wanted = values.get("image_amount_in_total")
    totals = {int(float(str(one))) for one in (wanted if isinstance(wanted, list) else [wanted]) if not absent(one)}
    if totals and totals != {len(images)}:
        raise FaultError(
            f"{len(images)} images of the prompt stand together, but image_amount_in_total is "
            f"{', '.join(map(str, sorted(totals)))}; sort the rows by prompt_id"
        )
    return _group(prompt, images, numbers if columns.rating else [-rank for rank in numbers], rated)


def _group(prompt: Prompt, images: Sequence[str], rewards: Sequence[float], column: str) -> TextGroup:
    if len(images) != len(rewards):
        raise FaultError(f"{column}: {number_of(len(rewards), 'value')} for {number_of(len(images), 'image')}")
    if len(images) < 2:
        raise FaultError("a single image of the prompt compares with nothing", "lone_response")
    return TextGroup(prompt, tuple(images), tuple(rewards))


def _names(values: _Values, column: str, name: NameImage) -> list[str]:
    cells = required(values, column)
    if not isinstance(cells, list):
        raise FaultError(f"{column}: must be a list of images, not {type(cells).__name__}")
    return [name(cell, f"{column}[{place}]") for place, cell in enumerate(cells)]


def _numbers(values: _Values, column: str) -> list[float]:
    cells = required(values, column)
    if not isinstance(cells, list):
        raise FaultError(f"{column}: must be a list of numbers, not {type(cells).__name__}")
    return [number(cell, f"{column}[{place}]") for place, cell in enumerate(cells)]


def _mark(values: _Values, column: str) -> bool:
    return truth(required(values, column), column, {"good": True, "bad": False})


def joined_by_prompt(held: Sequence[_Values], columns: ImageColumns) -> _Values:
    """Return rows of one image each as one row with lists, as ``imagereward`` reads it."""
    listed = {image_column(held[0], columns), columns.rating or "rank"}
    lists: _Values = {column: [find(values, column) for values in held] for column in listed}
    return {**held[0], **lists}
