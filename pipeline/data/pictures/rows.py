"""Rows of tables of images, read one by one: their preferences with names of images, and the images by those names.

A name is what ``picture_name`` makes of an image, so a first pass can count and split rows, and a second one store the
images of those that are kept. Torch-free.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from PIL import Image
from pydantic import JsonValue

from pipeline.config.data.images import ImageData, ImageLayout
from pipeline.config.data.user_data import FileData
from pipeline.data.files.records import Record, read_records
from pipeline.data.forms.cells import FaultError
from pipeline.data.pictures.cells import PictureCells, picture_name
from pipeline.data.pictures.layouts import (
    NameImage,
    captioned_image,
    image_preference,
    joined_by_prompt,
    layout_of,
    prompt_in,
)
from pipeline.data.pictures.picture import Frame, png_bytes
from pipeline.errors import UserError
from pipeline.types import Prompt, TextPreference

T = TypeVar("T")
# Reads a record: its layout, and how an image becomes a name.
Parse = Callable[[Record, ImageLayout, NameImage], T]
OnImage = Callable[[str, Image.Image], None]


def preference_among_images(data: ImageData, record: Record, layout: ImageLayout, name: NameImage) -> TextPreference:
    """Return a record's preference. Raises ``FaultError``."""
    return image_preference(record.values, layout, data.columns, name)


def prompt_with_images(
    data: ImageData, record: Record, layout: ImageLayout, name: NameImage
) -> tuple[Prompt, tuple[str, ...]]:
    """Return a record's prompt, and of ``captions`` the name of its image. Raises ``FaultError``."""
    prompt = prompt_in(record.values, data.columns)
    return prompt, (captioned_image(record.values, data.columns, name),) if layout == "captions" else ()


def parsed_images(
    data: ImageData, parse: Parse[T], on_image: OnImage | None = None
) -> Iterator[tuple[Record, T | FaultError]]:
    """Yield each record with what ``parse`` makes of it, or its fault; rows of one image each as one per prompt.

    ``on_image``: gets every image and its name as it is decoded.

    Raises:
        UserError: no data, a file that is damaged as a whole, or columns of no layout.
    """
    frame = Frame(*data.size, data.fit, data.most_pixels)
    for record, layout in _records(data):
        if record.fault is not None:
            yield record, FaultError(record.fault)
            continue
        cells = PictureCells(Path(data.root) if data.root is not None else Path(record.file).parent, frame)

        def name(cell: JsonValue, column: str, cells: PictureCells = cells) -> str:
            image = cells.image(cell, column)
            found = picture_name(image)
            if on_image is not None:
                on_image(found, image)
            return found

        try:
            yield record, parse(record, layout, name)
        except FaultError as fault:
            yield record, fault


def wanted_pictures(data: ImageData, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the PNG file of each of the ``wanted`` images once, in the order of the rows."""
    left = {*wanted}
    found: list[tuple[str, bytes]] = []

    def keep(name: str, image: Image.Image) -> None:
        if name in left:
            left.discard(name)
            found.append((name, png_bytes(image)))

    def names(record: Record, layout: ImageLayout, name: NameImage) -> None:
        if layout == "captions":
            captioned_image(record.values, data.columns, name)
        else:
            image_preference(record.values, layout, data.columns, name)

    for _ in parsed_images(data, names, keep):
        yield from found
        found.clear()
        if not left:
            return


def _records(data: ImageData) -> Iterator[tuple[Record, ImageLayout]]:
    """Yield records with their layout, those of ``imagereward`` joined by prompt."""
    plain = FileData(path=data.path, split=data.split, delimiter=data.delimiter)
    layout: ImageLayout | None = data.layout
    held: list[Record] = []
    for record in read_records(plain):
        if record.fault is None and layout is None:
            layout = layout_of(record.values, data.columns)
            if layout is None:
                raise UserError(f"{record.place}: columns of no layout of images: {_shown(record)}; {_KNOWN}")
        if layout == "imagereward" and record.fault is None and not isinstance(record.values.get("rank"), list):
            if held and _asked(held[0]) != _asked(record):
                yield _joined(held, data), layout
                held = []
            held.append(record)
            continue
        if held:
            yield _joined(held, data), "imagereward"
            held = []
        yield record, layout or "pairs"
    if held:
        yield _joined(held, data), "imagereward"


_KNOWN = "see pairs.layout, and pairs.columns for other names"


def _asked(record: Record) -> tuple[str, JsonValue]:
    return record.file, record.values.get("prompt_id")


def _joined(held: list[Record], data: ImageData) -> Record:
    return replace(held[0], values=joined_by_prompt([record.values for record in held], data.columns))


def _shown(record: Record) -> str:
    return ", ".join(map(repr, record.values))[:300] or "none"
