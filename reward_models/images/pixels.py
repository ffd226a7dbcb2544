"""Groups whose responses are images, for labellers of text and images alike. Torch-free.

A response's text names its image. Labellers see the SHA-256 of the image's file in its place, so that labels are kept
and found by what the image is, and two equal images get one label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy
from numpy.typing import NDArray

from pipeline.data.pictures.picture import PictureError, decoded_picture, picture_digest
from pipeline.errors import RunError
from pipeline.types import Group, Message, Prompt, Response
from reward_models.labeller import Labeller, Labels

Pixels = NDArray[numpy.uint8]


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image to label.

    Attributes:
        prompt: the text that it was made for, or its class as text.
        png: its file.
        answer: what labellers compare with, such as the number of its class; None: nothing.
    """

    prompt: str
    png: bytes
    answer: str | None = None


@dataclass
class Album:
    """The images of one call by the SHA-256 of their files."""

    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> str:
        """Take up a file; return its digest."""
        digest = picture_digest(data)
        self.files[digest] = data
        return digest

    def file(self, response: Response) -> bytes:
        """Return the file of the image that ``response`` stands for."""
        return self.files[response.text]

    def pixels(self, response: Response) -> Pixels:
        """Return its pixels, [height, width, 3]. Raises ``RunError`` for a damaged image."""
        try:
            return numpy.array(decoded_picture(self.file(response)), dtype=numpy.uint8)
        except PictureError as error:
            raise RunError(f"the image {response.text[:16]} cannot be read: {error}") from None


class ImageLabeller:
    """A labeller of groups whose responses' texts are names of images."""

    def __init__(self, labeller: Labeller, pictures: Mapping[str, bytes], album: Album) -> None:
        """``pictures``: files by response text; ``album``: the one that ``labeller`` reads."""
        self._labeller = labeller
        self._pictures = pictures
        self._album = album

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return one ``Labels`` per group. Raises ``RunError`` for an image that is not there."""
        try:
            return self._labeller.label([self._by_digest(group) for group in groups])
        finally:
            self._album.files.clear()

    def _by_digest(self, group: Group) -> Group:
        named = []
        for response in group.responses:
            data = self._pictures.get(response.text)
            if data is None:
                raise RunError(f"no image {response.text[:80]!r} for the prompt {group.prompt.id}")
            named.append(replace(response, text=self._album.put(data)))
        return replace(group, responses=tuple(named))


def image_group(items: Sequence[ImageItem]) -> tuple[Group, dict[str, bytes]]:
    """Return images of one prompt as a group, and their files by response text."""
    first = items[0]
    prompt = Prompt((Message("user", first.prompt),), answer=first.answer)
    files = {picture_digest(item.png): item.png for item in items}
    responses = tuple(Response(picture_digest(item.png), (), (), "stop") for item in items)
    return Group(prompt, (), responses), files


def prompt_text(prompt: Prompt) -> str:
    """Return the text that an image was made for."""
    return prompt.messages[-1].content
