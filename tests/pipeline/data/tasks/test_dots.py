"""The image task's comparisons: the better picture is chosen, at the shares that were asked for."""

import numpy as np
import pytest

from pipeline.config import DotPairs
from pipeline.data.pictures.dot_rows import compared_pictures, dot_preferences
from pipeline.data.pictures.picture import decoded_picture
from pipeline.data.tasks.dots import dot_comparisons, dot_marks, dot_picture


def merit(picture: np.ndarray, condition: int) -> float:
    marks = dot_marks(picture, condition)
    return marks.colour + marks.half + 0.5 * marks.clean


@pytest.mark.parametrize(("wrong", "share"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_the_better_picture_is_chosen_unless_exchanged(wrong: float, share: float) -> None:
    found = [*dot_comparisons(DotPairs(pairs=400, wrong=wrong))]
    better = [
        merit(chosen, int(prompt.answer or -1)) > merit(rejected, int(prompt.answer or -1))
        for prompt, chosen, rejected in found
    ]
    assert abs(np.mean(better) - share) < (0.07 if 0 < wrong < 1 else 1e-9)
    assert len({prompt.id for prompt, *_ in found}) == 400


def test_a_picture_is_marked_by_the_nearest_perfect_one() -> None:
    blue_below = dot_picture(2, 5, 1)
    assert dot_marks(blue_below, 5).all_right and not dot_marks(blue_below, 4).half
    assert not dot_marks(blue_below, 1).colour
    assert not dot_marks((blue_below * 0.6).astype(np.uint8), 5).clean


def test_names_are_those_of_the_pictures_that_are_stored() -> None:
    settings = DotPairs(pairs=32, seed=3)
    files, pairs = dict(compared_pictures(settings)), [*dot_preferences(settings)]
    assert {name for pair in pairs for name in (pair.chosen, pair.rejected)} == set(files)
    _, chosen, _ = next(dot_comparisons(settings))
    assert np.array_equal(np.asarray(decoded_picture(files[pairs[0].chosen])), chosen)


def test_shares_that_make_all_pictures_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="faded: 0, with colour: 1 and half: 1, makes all pictures"):
        DotPairs(colour=1, half=1, faded=0)
