"""The comparisons of the generated image task, with names of images as tables of images have them. Torch-free."""

from collections.abc import Iterator

from PIL import Image

from pipeline.config.data.sources import DotPairs
from pipeline.data.pictures.cells import picture_name
from pipeline.data.pictures.picture import png_bytes
from pipeline.data.tasks.dots import Picture, dot_comparisons
from pipeline.types import TextPair


def dot_preferences(settings: DotPairs) -> Iterator[TextPair]:
    """Yield the pairs, whose responses are names of pictures."""
    for prompt, chosen, rejected in dot_comparisons(settings):
        yield TextPair(prompt, _name(chosen), _name(rejected))


def compared_pictures(settings: DotPairs) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the PNG file of each picture, in the order of the pairs; some come again."""
    for _, chosen, rejected in dot_comparisons(settings):
        for picture in (chosen, rejected):
            yield _name(picture), png_bytes(Image.fromarray(picture))


def _name(picture: Picture) -> str:
    return picture_name(Image.fromarray(picture))
