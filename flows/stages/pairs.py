"""pairs: scored groups, or a slice of a pair data set, -> preference pairs as token ids."""

from pathlib import Path

from pydantic import JsonValue

from flows.stages import Context, Outcome
from flows.stages.data import text_pairs
from flows.stages.samples import policy_chat
from pipeline.pairs import make_pairs, tokenise_pairs
from pipeline.rows import read_groups, write_pairs
from pipeline.types import Pair, RunError, first_lines


def pairs(context: Context, round_: int, folder: Path) -> Outcome:
    """Write the round's pairs; what became no pair is counted by cause."""
    config = context.config
    if config.mode == "offline":
        made, dropped = offline_pairs(context, round_)
    else:
        groups = read_groups(context.run.stage(round_, "labels").folder)
        made, dropped = make_pairs(groups, config.pairing, round_, config.seed)
    if not made:
        causes = first_lines([f"{cause}: {count}" for cause, count in dropped.items() if count])
        raise RunError(f"round {round_}: no pair is left to train on; dropped by cause:\n{causes}")
    write_pairs(folder / "rows.parquet", made)
    margins = [
        p.chosen_score - p.rejected_score for p in made if p.chosen_score is not None and p.rejected_score is not None
    ]
    mean = sum(margins) / len(margins) if margins else None
    metrics: dict[str, JsonValue] = {"dropped": dict(dropped), "margin": mean}
    return Outcome(len(made), metrics)


def offline_pairs(context: Context, round_: int) -> tuple[list[Pair], dict[str, int]]:
    """Slice ``round_`` of the data set's pairs: contiguous, in the order of the file."""
    config = context.config
    texts = text_pairs(context, "pairs")
    chat = policy_chat(config, context.policy_path(0))
    start, end = ((round_ - 1) * len(texts)) // config.rounds, (round_ * len(texts)) // config.rounds
    return tokenise_pairs(texts[start:end], chat, config.chat)
