"""A data set's preferences among images as ids: names of images become the images that the run stored. Torch-free.

Dropped rows are counted by cause: ``identical`` (one image on both sides). Rows are made one at a time, and counts are
complete after the last one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from pipeline.config import RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.data.pictures.image_rows import image_response
from pipeline.errors import RunError
from pipeline.training.pairs.from_data import pair_of
from pipeline.training.pairs.make import from_groups
from pipeline.types import Group, Preference, Prompt, Response, TextGroup, TextPair, TextPreference, Unpaired


def from_image_names(
    config: RunConfig,
    part: Iterable[TextPreference],
    stored: Mapping[str, str],
    prompt_ids: Callable[[Prompt], tuple[int, ...]],
    round_: int,
    dropped: Counter[str],
) -> Iterator[Preference]:
    """Make training data of rows of the data set, all of one form, in order.

    ``stored``: the id of each image by its name. ``prompt_ids``: what the policy is told, as ids.

    Raises:
        RunError: a row names an image that is not stored.
    """

    def image(name: str) -> Response:
        if name not in stored:
            raise RunError(f"a row of the data set names the image {name}, which the data stage does not hold")
        return image_response(stored[name])

    def groups(rows: Iterable[TextPreference]) -> Iterator[Group]:
        for row in rows:
            if isinstance(row, TextGroup):
                yield Group(row.prompt, prompt_ids(row.prompt), tuple(map(image, row.responses)), row.rewards)

    rest = iter(part)
    first = next(rest, None)
    if isinstance(first, TextGroup):
        yield from from_groups(config, round_, groups(_with(first, rest)), dropped)
        return
    dropped["identical"] += 0
    for row in () if first is None else _with(first, rest):
        match row:
            case TextPair() if row.chosen == row.rejected:
                dropped["identical"] += 1
            case TextPair():
                sides = image(row.chosen), image(row.rejected)
                yield pair_of(row, prompt_ids(row.prompt), *sides, needs_of(config.loss).opponent)
            case TextGroup():
                raise AssertionError("a data set holds one form")
            case _:
                yield Unpaired(row.prompt, prompt_ids(row.prompt), image(row.completion), row.desirable)


def _with(first: TextPreference, rest: Iterator[TextPreference]) -> Iterator[TextPreference]:
    yield first
    yield from rest
