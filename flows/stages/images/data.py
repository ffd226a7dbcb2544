"""data of image runs: prompts split as for text, and the pictures that the start model learns from."""

from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.data import data
from flows.stages.images.imported import import_images
from pipeline.config import DotPairs, DotsData, ImageData, ScratchDiffusion
from pipeline.data.pictures.image_rows import write_images
from pipeline.data.pictures.picture import png_bytes
from pipeline.data.tasks.dots import Picture, dot_pictures
from pipeline.types import DrawnImage

# Folder of the data stage.
PICTURES = "pictures"


def image_data(context: Context, folder: Path) -> Outcome:
    """Write the run's prompts, and the pictures of the warm start with the class that each is meant to show."""
    outcome, prompts = data(context, folder), context.config.prompts
    made: dict[str, JsonValue] = {}
    if isinstance(context.config.policy, ScratchDiffusion):
        task = prompts if isinstance(prompts, DotsData) else DotsData()
        (folder / PICTURES).mkdir(exist_ok=True)
        pictures = ((str(condition), drawn_picture(picture)) for condition, picture in dot_pictures(task))
        made["pictures"] = write_images(folder / PICTURES / "rows.parquet", pictures)
    if isinstance(context.config.pairs, ImageData | DotPairs):
        made["images"] = import_images(context, folder)
    return Outcome(outcome.rows, {**outcome.metrics, **made})


def drawn_picture(picture: Picture) -> DrawnImage:
    """A picture [H, W, 3] as a file, with its pixels from -1 to 1 as latents, for models on pixels."""
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)
    height, width, channels = picture.shape
    return DrawnImage(
        png_bytes(Image.fromarray(picture)), pixels.astype("<f4").tobytes(), (channels, height, width), -1
    )
