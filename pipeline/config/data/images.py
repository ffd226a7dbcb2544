"""Preferences among images, or images with captions, in files of the user's own."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Closed
from pipeline.config.data.columns import Column

ImageLayout = Literal["pickapic", "hpdv2", "imagereward", "marked", "pairs", "captions"]
_Side = Annotated[int, Field(ge=1, le=16384)]


class ImageColumns(Closed):
    """Names of columns, where they differ from those of the layout."""

    prompt: Column | None = Field(None, description="default: the first there is of prompt, caption, text")
    image: Column | None = Field(
        None, description="marked, captions: default: the first of image, file_path, image_path, file_name, file, path"
    )
    chosen: Column = Field("chosen", description="pairs: the preferred image")
    rejected: Column = Field("rejected", description="pairs: the other one")
    label: Column = Field("label", description="marked: true for good, false for bad")
    soft_label: Column = Field(
        "soft_label", description="pairs: probability that chosen is the better one; absent: 1 (certain)"
    )
    rating: Column | None = Field(
        None, description="imagereward: a rating, higher for better images, such as overall_rating; default: rank"
    )
    answer: Column = Field("answer", description="number of the class, for models of classes; may be absent")


class ImageData(Closed):
    """Tables of images: JSONL, JSON, CSV, TSV, parquet or Arrow, also as ``datasets`` saves them; read row by row.

    An image is a struct of bytes and path, as ``datasets`` stores it, or bytes, or a path. Bare URLs are refused:
    nothing is fetched. Images are decoded, made RGB and brought to ``size``; the run keeps its own copies.
    """

    kind: Literal["images"] = "images"
    path: str = Field(min_length=1, description="file, folder (read with its subfolders), or a pattern such as d/*.csv")
    size: tuple[_Side, _Side] = Field(description="height and width in pixels, those that the policy draws")
    split: str | None = Field(None, min_length=1, description="of a folder that holds several, such as train")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="of CSV; default: guessed")
    layout: ImageLayout | None = Field(
        None,
        description="pickapic: caption, jpg_0, jpg_1, label_0, label_1; hpdv2: prompt, file_path and human_preference, "
        "or image_path and rank; imagereward: one image a row, with prompt_id and rank; marked: an image and a label; "
        "pairs: chosen and rejected; captions: an image and a text alone; default: told by the columns",
    )
    columns: ImageColumns = ImageColumns()
    root: str | None = Field(
        None,
        min_length=1,
        description="folder that paths of images are relative to, and must lie in; default: the table's",
    )
    fit: Literal["crop", "stretch", "exact"] = Field(
        "crop",
        description="crop: other sizes are scaled until they cover size, and cut around the middle; stretch: scaled to "
        "it; exact: they are a fault",
    )
    most_pixels: int = Field(50_000_000, ge=1, description="an image with more is a fault, and is not decoded")

    @property
    def where(self) -> str:
        """The name of the data in messages."""
        return self.path if self.split is None else f"{self.path}, split {self.split}"
