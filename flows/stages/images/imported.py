"""Images of a data set in a run: stored once by the data stage, and then trained on like sampled ones."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flows.stages.context import Context
from flows.stages.data import preference_slice
from pipeline.config import DiffusionPolicy, DotPairs, ImageData
from pipeline.data.pictures.dot_rows import compared_pictures
from pipeline.data.pictures.image_rows import IMAGES, read_images, write_images
from pipeline.data.pictures.picture import decoded_picture
from pipeline.data.pictures.rows import wanted_pictures
from pipeline.data.run_data import HELD_OUT_PAIRS
from pipeline.data.sources import held_out_source
from pipeline.errors import UserError
from pipeline.images.image_folder import load_image_policy
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.prompt_ids import condition_told, ids_of_prompt, told_in
from pipeline.storage.rows import read_rows
from pipeline.training.pairs.from_images import from_image_names
from pipeline.types import DrawnImage, Preference, Prompt, TextPreference


def import_images(context: Context, folder: Path) -> int:
    """Store the images that the tables in ``folder`` name, at the policy's size; return their number.

    Raises:
        UserError: ``pairs.size`` is not the size that the policy draws.
    """
    config = context.config
    sources = [source for source in (config.pairs, held_out_source(config)) if isinstance(source, ImageData | DotPairs)]
    policy = (
        load_image_policy(config.policy.path, encoders="vae") if isinstance(config.policy, DiffusionPolicy) else None
    )
    (folder / IMAGES).mkdir(exist_ok=True)
    return write_images(folder / IMAGES / "rows.parquet", _imported(sources, {*_names(folder)}, policy))


def _imported(
    sources: list[ImageData | DotPairs], wanted: set[str], policy: ImagePolicy | None
) -> Iterator[tuple[str, DrawnImage]]:
    """Yield each wanted image once with its name, which stands where sampled images have their prompt's id."""
    for source in sources:
        pictures = compared_pictures(source) if isinstance(source, DotPairs) else wanted_pictures(source, wanted)
        for name, png in pictures:
            if name in wanted:
                wanted.discard(name)
                yield name, imported_image(png, policy)


def imported_image(png: bytes, policy: ImagePolicy | None) -> DrawnImage:
    """Return an image with what training reads of it: its pixels, or what the policy's autoencoder makes of them.

    ``policy``: None: one on pixels. Raises ``UserError`` for a size that the policy does not draw.
    """
    picture = np.asarray(decoded_picture(png))
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)
    latents: NDArray[np.float32] = pixels
    if policy is not None:
        latents = policy.latents(torch.from_numpy(pixels)[None])[0].numpy()
        if latents.shape != policy.shape:
            size, drawn = " x ".join(map(str, picture.shape[:2])), " x ".join(map(str, policy.shape))
            raise UserError(
                f"pairs.size: {size} pixels are {' x '.join(map(str, latents.shape))} to {policy.path}, which draws "
                f"{drawn} (channels, height, width); allowed: the size that it draws"
            )
    channels, height, width = latents.shape
    return DrawnImage(png, latents.astype("<f4").tobytes(), (channels, height, width), -1)


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of images in the tables of preferences."""
    for table, fields in (
        ("pairs", ("chosen", "rejected")),
        (HELD_OUT_PAIRS, ("chosen", "rejected")),
        ("groups", ("responses",)),
        ("unpaired", ("completion",)),
    ):
        for row in read_rows(folder / table):
            for field in fields:
                yield from [row[field]] if isinstance(row[field], str) else row[field]


def imported_preferences(context: Context, round_: int, dropped: Counter[str]) -> Iterator[Preference]:
    """A round's slice of the data set, row by row; ``dropped`` counts rows that are left out, by cause."""
    return imported_pairs(context, preference_slice(context, round_), round_, dropped)


def imported_pairs(
    context: Context, rows: Iterable[TextPreference], round_: int, dropped: Counter[str]
) -> Iterator[Preference]:
    """Preferences of the data set with the images that the data stage stored; ``dropped`` as above."""
    stored = {image.prompt_id: image.id for image in read_images(context.run.stage(0, "data").folder / IMAGES)}
    told = told_in(context.policy_path(0))

    def prompt_ids(prompt: Prompt) -> tuple[int, ...]:
        return ids_of_prompt(condition_told(prompt, told), told)

    return from_image_names(context.config, rows, stored, prompt_ids, round_, dropped)
