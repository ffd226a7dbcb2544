"""Reward of the image quickstart: what is right about a picture of a dot. Torch-free."""

from collections.abc import Sequence

from pipeline.config import DotsScorer
from pipeline.data.tasks.dots import DotMarks, Picture, dot_marks
from pipeline.errors import UserError
from pipeline.types import Group, Prompt
from reward_models.images.pixels import Album
from reward_models.labeller import Scores


class DotsReward:
    """A ``Scorer`` of images of the task ``dots``."""

    def __init__(self, settings: DotsScorer, album: Album) -> None:
        """``album``: the images."""
        self._clean, self._album = settings.clean, album

    def score(self, groups: Sequence[Group]) -> list[Scores]:
        """Return colour + half + ``clean`` x shape for each image. Raises ``UserError`` for another task's prompt."""
        return [
            tuple(self._reward(marks_of(group.prompt, self._album.pixels(response))) for response in group.responses)
            for group in groups
        ]

    def _reward(self, marks: DotMarks) -> float:
        return marks.colour + marks.half + self._clean * marks.clean


def marks_of(prompt: Prompt, picture: Picture) -> DotMarks:
    """Return what is right about a picture. Raises as ``DotsReward.score``."""
    asked = prompt.answer
    if asked is None or not asked.isdecimal():
        said = prompt.messages[-1].content
        raise UserError(f"scorer.kind: dots reads prompts of kind dots, but {said!r} is none")
    return dot_marks(picture, int(asked))
