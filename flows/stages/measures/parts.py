"""Held-out prompts of a round by source and category, and the win rates of each prompt."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import parent
from flows.stages.context import Context
from flows.stages.data import held_out_prompts
from pipeline.data.spool.categories import held_out_categories
from pipeline.evaluation.breakdown import PartNames
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.metrics import wins_by_score
from pipeline.storage.atomic import write_json
from pipeline.types import Group
from reward_models.labeller import Labeller, wins_by_comparison

CATEGORIES = "categories.json"
# By the name of the policy that is compared with, and by prompt id.
WinsByPrompt = dict[str, dict[str, float]]


def held_out_names(context: Context, round_: int, folder: Path) -> dict[str, str]:
    """The category of each held-out prompt by its id; read once, in round 0, and written to ``folder``."""
    column = context.config.evaluation.category
    if column is None:
        return {}
    file = context.run.stage(0, "evaluation").folder / CATEGORIES
    if round_ == 0 or not file.is_file():
        found = held_out_categories(context.config, column, [prompt.id for prompt in held_out_prompts(context)])
        write_json(folder / CATEGORIES, dict(found))
        return found
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return known


def parts_of_prompts(context: Context, round_: int, sampled: Sequence[Group], folder: Path) -> PartNames:
    """The parts of the prompts of ``sampled``, by their ids."""
    prompts = {group.prompt.id: group.prompt for group in sampled}
    return PartNames.of(prompts, held_out_names(context, round_, folder))


def compared_rounds(context: Context, round_: int) -> dict[str, int]:
    """The rounds that ``round_`` is compared with, by name."""
    return {"start": 0, "previous": parent(context.run, context.config, round_)}


def wins_of(ours: Sequence[Group], theirs: Sequence[Group], labeller: Labeller, *, compares: bool) -> dict[str, float]:
    """Win rates of ``ours`` by prompt id; ``compares``: whether the labeller compares, or the groups have scores."""
    return wins_by_comparison(ours, theirs, labeller) if compares else wins_by_score(ours, theirs)


def win_rates(wins: WinsByPrompt) -> dict[str, JsonValue]:
    """The metrics ``win_rate_vs_NAME`` with their intervals; None without labels."""
    metrics: dict[str, JsonValue] = {}
    for name in ("start", "previous"):
        interval = rate_interval([*wins[name].values()]) if name in wins else None
        metrics[f"win_rate_vs_{name}"] = None if interval is None else interval.mean
        metrics[f"win_rate_vs_{name}_ci"] = None if interval is None else [interval.low, interval.high]
    return metrics
