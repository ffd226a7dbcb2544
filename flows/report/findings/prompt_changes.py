"""Each held-out prompt's reward, or the margin of its pairs, at the start and in a round, from a run folder."""

import json
from collections.abc import Iterator

from flows.report.findings.worse import PromptChange, WorsePrompts, worse_prompts
from pipeline.data.run_data import HELD_OUT_PAIRS
from pipeline.storage.rows import read_groups, read_rows, row_text_pair
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Prompt

_MARGINS = "held_out_margins.json"


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
    text = "\n".join(message.shown for message in prompt.messages)
    turns = sum(message.role == "user" for message in prompt.messages)
    return PromptChange(text, before, after, len(text), turns, prompt.source)


def _rewards(run: RunFolder, round_: int) -> Iterator[tuple[str, tuple[Prompt, float]]]:
    """Prompts by id, with the mean score of their sampled responses."""
    for group in read_groups(run.stage(round_, "evaluation").folder / "sampled"):
        known = [score for score in group.scores if score is not None]
        if known:
            yield group.prompt.id, (group.prompt, sum(known) / len(known))


def _margins(run: RunFolder, round_: int) -> Iterator[tuple[str, tuple[Prompt, float]]]:
    """Prompts by id, with the mean margin of their pairs; none if some pairs of the data have no margin."""
    file, data = run.stage(round_, "evaluation").folder / _MARGINS, run.stage(0, "data").folder / HELD_OUT_PAIRS
    margins: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    prompts = [row_text_pair(row).prompt for row in read_rows(data)] if margins and data.is_dir() else []
    # Margins go by the hash of a pair's tokens, in the data's order; where pairs were left out, none can be placed.
    found: dict[str, tuple[Prompt, list[float]]] = {}
    if len(prompts) == len(margins):
        for prompt, margin in zip(prompts, margins.values(), strict=True):
            found.setdefault(prompt.id, (prompt, []))[1].append(margin)
    yield from ((key, (prompt, sum(values) / len(values))) for key, (prompt, values) in found.items())
