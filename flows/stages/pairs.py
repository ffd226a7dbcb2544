"""pairs: scored groups, or a slice of a data set, -> what the round trains on, as token ids.

Pairs, or groups for a loss over K responses, or single responses marked good or bad. The round's own are in
``rows.parquet``; what earlier rounds and a data set add has files of its own beside it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.stages import Context, Outcome
from flows.stages.data import preference_slice
from flows.stages.samples import policy_chat
from flows.supply import takes_groups, win_against
from pipeline.given import tokenise_groups, tokenise_pairs, tokenise_unpaired
from pipeline.pairs import drop_repeated, make_groups, make_marked, make_pairs
from pipeline.rows import read_groups, read_preference_file, write_preferences
from pipeline.types import (
    Group,
    Pair,
    Preference,
    RunError,
    TextGroup,
    TextPair,
    TextPreference,
    UnpairedText,
    first_lines,
)

Made = tuple[list[Preference], dict[str, int]]
OWN = "rows.parquet"


def pairs(context: Context, round_: int, folder: Path) -> Outcome:
    """Write what the round trains on; what became none of it is counted by cause."""
    made, dropped = own(context, round_)
    if not made:
        causes = first_lines([f"{cause}: {count}" for cause, count in dropped.items() if count])
        raise RunError(f"round {round_}: no pair is left to train on; dropped by cause:\n{causes}")
    write_preferences(folder / OWN, made)
    metrics: dict[str, JsonValue] = {"kind": type(made[0]).__name__.lower(), "dropped": dict(dropped)}
    metrics |= {"margin": mean_margin(made), "own": len(made)}
    if context.config.replay is None:
        return Outcome(len(made), metrics)
    from flows.stages.replay import replay

    added, beside = replay(context, round_, made, folder)
    return Outcome(len(made) + added, {**metrics, **beside})


def own(context: Context, round_: int) -> Made:
    """What the round makes itself, and what was dropped by cause; writes nothing."""
    if context.config.mode == "offline":
        made, dropped = from_texts(context, list(preference_slice(context, round_)), round_)
    else:
        made, dropped = _from_groups(context, round_, read_groups(context.run.stage(round_, "labels").folder))
    if context.config.pairing.drop_repeated:
        stages = [context.run.stage(earlier, "pairs") for earlier in range(1, round_)]
        seen = {row.id for stage in stages for row in read_preference_file(stage.folder / OWN)}
        made, repeated = drop_repeated(made, seen)
        dropped = {**dropped, **repeated}
    return made, dropped


def from_texts(context: Context, part: Sequence[TextPreference], round_: int) -> Made:
    """Tokens of rows of the data set, all of one form, in their order, and what was dropped by cause."""
    config = context.config
    chat = policy_chat(config, context.policy_path(0))
    groups, cut = tokenise_groups((text for text in part if isinstance(text, TextGroup)), chat, config.chat)
    if groups:
        made, dropped = _from_groups(context, round_, groups)
        # Responses that were cut are counted once, whether or not drop_cut drops them.
        return made, {**dropped, **cut}
    marked, dropped = tokenise_unpaired((text for text in part if isinstance(text, UnpairedText)), chat, config.chat)
    if marked:
        return [*marked], dropped
    given = (text for text in part if isinstance(text, TextPair))
    made_pairs, dropped = tokenise_pairs(given, chat, config.chat, win_against(config.loss))
    return [*made_pairs], dropped


def mean_margin(made: Iterable[Preference]) -> float | None:
    """Mean difference of the scores of pairs, where they have scores."""
    margins = [
        row.chosen_score - row.rejected_score
        for row in made
        if isinstance(row, Pair) and row.chosen_score is not None and row.rejected_score is not None
    ]
    return sum(margins) / len(margins) if margins else None


def _from_groups(context: Context, round_: int, groups: Iterable[Group]) -> Made:
    config = context.config
    if takes_groups(config.loss):
        kept, dropped = make_groups(groups, config.pairing)
        return [*kept], dropped
    if config.pairing.rule == "marked":
        marked, dropped = make_marked(groups, config.pairing)
        return [*marked], dropped
    made, dropped = make_pairs(groups, config.pairing, round_, config.seed, win_against(config.loss))
    return [*made], dropped
