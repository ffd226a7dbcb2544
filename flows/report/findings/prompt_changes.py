"""Each held-out prompt's reward, or the margin of its pairs, at the start and in a round, from a run folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.report.findings.worse import PromptChange, WorsePrompts, worse_prompts
from pipeline.data.run_data import HELD_OUT_PAIRS
from pipeline.storage.rows import read_groups, read_rows, row_text_pair
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Prompt

_MARGINS, _PROMPTS = "held_out_margins.json", "held_out_prompts.json"


def worse_in(run: RunFolder, round_: int) -> WorsePrompts | None:
    """The held-out prompts that got worse by ``round_``; None before the first round, or if no result is per prompt.

    By reward if a labeller scored single responses, else by the margins of held-out pairs.
    """
    if round_ == 0:
        return None
    for measure, read in (("reward", _rewards), ("margin", _margins)):
        before, after = dict(read(run, 0)), dict(read(run, round_))
        changes = [
            _change(prompt, before[prompt.id][1], value) for prompt, value in after.values() if prompt.id in before
        ]
        if changes:
            return worse_prompts(changes, round_, measure)
    return None


def _change(prompt: Prompt, before: float, after: float) -> PromptChange:
    text = "\n".join(message.shown for message in prompt.shown)
    turns = sum(message.role == "user" for message in prompt.messages)
    return PromptChange(text, before, after, len(text), turns, prompt.source)


def _rewards(run: RunFolder, round_: int) -> Iterator[tuple[str, tuple[Prompt, float]]]:
    """Prompts by id, with the mean score of their sampled responses."""
    for group in read_groups(run.stage(round_, "evaluation").folder / "sampled"):
        known = [score for score in group.scores if score is not None]
        if known:
            yield group.prompt.id, (group.prompt, sum(known) / len(known))


def _margins(run: RunFolder, round_: int) -> Iterator[tuple[str, tuple[Prompt, float]]]:
    """Prompts by id, with the mean margin of their pairs."""
    folder = run.stage(round_, "evaluation").folder
    margins, prompts = _plain(folder / _MARGINS), _prompts(run) if (folder / _MARGINS).is_file() else []
    known = {prompt.id: prompt for prompt in prompts}
    whose = _plain(folder / _PROMPTS)
    if not whose and len(prompts) == len(margins):
        # Evaluations of 0.1.0 do not say whose margins these are; they are in the data's order if no pair was left out.
        whose = {key: prompt.id for key, prompt in zip(margins, prompts, strict=True)}
    found: dict[str, list[float]] = {}
    for key, margin in margins.items():
        if whose.get(key) in known:
            found.setdefault(whose[key], []).append(margin)
    yield from ((key, (known[key], sum(values) / len(values))) for key, values in found.items())


def _prompts(run: RunFolder) -> list[Prompt]:
    return [row_text_pair(row).prompt for row in read_rows(run.stage(0, "data").folder / HELD_OUT_PAIRS)]


def _plain(file: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return plain
