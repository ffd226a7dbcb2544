"""pairs: scored groups, or a slice of a data set, -> what the round trains on, as token ids.

Pairs, or groups for a loss over K responses, or single responses where the data set holds those.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from flows.stages import Context, Outcome
from flows.stages.data import text_preferences
from flows.stages.samples import policy_chat
from flows.supply import takes_groups, win_against
from pipeline.given import tokenise_groups, tokenise_pairs, tokenise_unpaired
from pipeline.pairs import make_groups, make_pairs
from pipeline.rows import read_groups, write_preferences
from pipeline.types import Group, Pair, Preference, RunError, TextGroup, TextPair, UnpairedText, first_lines

Made = tuple[list[Preference], dict[str, int]]


def pairs(context: Context, round_: int, folder: Path) -> Outcome:
    """Write what the round trains on; what became none of it is counted by cause."""
    if context.config.mode == "offline":
        made, dropped = _from_data(context, round_)
    else:
        made, dropped = _from_groups(context, round_, read_groups(context.run.stage(round_, "labels").folder))
    if not made:
        causes = first_lines([f"{cause}: {count}" for cause, count in dropped.items() if count])
        raise RunError(f"round {round_}: no pair is left to train on; dropped by cause:\n{causes}")
    write_preferences(folder / "rows.parquet", made)
    metrics: dict[str, JsonValue] = {"kind": type(made[0]).__name__.lower(), "dropped": dict(dropped)}
    return Outcome(len(made), {**metrics, "margin": _margin(made)})


def _from_groups(context: Context, round_: int, groups: Iterable[Group]) -> Made:
    config = context.config
    if takes_groups(config.loss):
        kept, dropped = make_groups(groups, config.pairing)
        return [*kept], dropped
    made, dropped = make_pairs(groups, config.pairing, round_, config.seed, win_against(config.loss))
    return [*made], dropped


def _from_data(context: Context, round_: int) -> Made:
    """Slice ``round_`` of the data set: contiguous, in the order of the file."""
    config = context.config
    texts = text_preferences(context)
    chat = policy_chat(config, context.policy_path(0))
    part = texts[((round_ - 1) * len(texts)) // config.rounds : (round_ * len(texts)) // config.rounds]
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


def _margin(made: list[Preference]) -> float | None:
    """Mean difference of the scores of pairs, where they have scores."""
    margins = [
        row.chosen_score - row.rejected_score
        for row in made
        if isinstance(row, Pair) and row.chosen_score is not None and row.rejected_score is not None
    ]
    return sum(margins) / len(margins) if margins else None
