"""pairs: scored groups, or a slice of a data set -> the round's training data, as token ids.

Pairs, or groups for a loss over K responses, or single responses marked good or bad. The round's own rows are in
``rows.parquet``; rows from earlier rounds and from a data set have their own files next to it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import SECOND_SAMPLES
from flows.stages.context import Context, Outcome, policy_chat
from flows.stages.data import preference_slice
from flows.stages.replay import OWN
from pipeline.errors import RunError, first_lines
from pipeline.storage.rows import read_groups, read_preference_file, write_preferences
from pipeline.training.pairs import drop_repeated
from pipeline.training.pairs.from_data import from_texts
from pipeline.training.pairs.make import from_groups
from pipeline.training.pairs.strong_weak import make_strong_weak
from pipeline.types import Pair, Preference


class Margins:
    """The mean score difference of the pairs that pass through."""

    def __init__(self) -> None:
        self.rows = self._known = 0
        self._sum = 0.0

    def of(self, made: Iterable[Preference]) -> Iterator[Preference]:
        """Pass on ``made``, row by row."""
        for row in made:
            self.rows += 1
            if isinstance(row, Pair) and row.chosen_score is not None and row.rejected_score is not None:
                self._known += 1
                self._sum += row.chosen_score - row.rejected_score
            yield row

    @property
    def mean(self) -> float | None:
        """The mean over pairs with scores; None without any."""
        return self._sum / self._known if self._known else None


def make_round_pairs(context: Context, round_: int, folder: Path) -> Outcome:
    """Write the round's training data, row by row; count dropped candidates by cause."""
    dropped = Counter[str]()
    rest = own(context, round_, dropped)
    first = next(rest, None)
    if first is None:
        causes = first_lines([f"{cause}: {count}" for cause, count in dropped.items() if count])
        raise RunError(f"round {round_}: no pair is left to train on; dropped by cause:\n{causes}")
    margins = Margins()
    write_preferences(folder / OWN, margins.of(chain((first,), rest)))
    metrics: dict[str, JsonValue] = {"kind": type(first).__name__.lower(), "dropped": dict(dropped)}
    metrics |= {"margin": margins.mean, "own": margins.rows}
    if context.config.replay is None:
        return Outcome(margins.rows, metrics)
    from flows.stages.replay import replay

    added, beside = replay(context, round_, margins.rows, folder)
    return Outcome(margins.rows + added, {**metrics, **beside})


def own(context: Context, round_: int, dropped: Counter[str]) -> Iterator[Preference]:
    """The round's own training data, row by row; at the end, ``dropped`` holds the dropped candidates by cause."""
    config = context.config
    made: Iterator[Preference]
    if config.mode == "offline" and config.modality == "image":
        # Text runs need no diffusers.
        from flows.stages.images.imported import imported_preferences

        made = imported_preferences(context, round_, dropped)
    elif config.mode == "offline":
        chat = policy_chat(config, context.policy_path(0))
        made = from_texts(config, chat, preference_slice(context, round_), round_, dropped)
    elif config.pairing.second is not None:
        groups, others = (read_groups(context.run.stage(round_, name).folder) for name in ("samples", SECOND_SAMPLES))
        made = make_strong_weak(groups, others, config.pairing, round_, dropped=dropped)
    else:
        groups = read_groups(context.run.stage(round_, "labels").folder)
        made = from_groups(config, round_, groups, dropped)
    if not config.pairing.drop_repeated:
        return made
    stages = [context.run.stage(earlier, "pairs") for earlier in range(1, round_)]
    earlier = chain.from_iterable(read_preference_file(stage.folder / OWN) for stage in stages)
    return drop_repeated(made, earlier, dropped=dropped)
