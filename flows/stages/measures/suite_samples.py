"""suite_samples: the policy's answers to the suites of a round, through the sampler child."""

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.data import text_preferences, training_prompts
from flows.stages.measures.tasks import measure_tasks
from flows.stages.sampling.shards import SampledFrom, sample_stage
from flows.workers.local import Workers
from pipeline.config import SamplingSettings, Suite
from pipeline.config.evaluation.suites import LmEvalSuite, RewardBenchSuite, answers, due, suite_name
from pipeline.data.files.suite_rows import questions
from pipeline.data.forms.plain import plain_id
from pipeline.errors import UserError
from pipeline.safe_text import one_line
from pipeline.storage.atomic import write_json
from pipeline.types import Prompt

# What a suite of tasks measured, in its folder.
SUITE_MEASURED = "measured.json"
LEAKED = "leaked.json"
_SHOWN = 5

logger = logging.getLogger(__name__)


def suite_samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """Answer the suites of the round greedily, each in a folder of its own.

    Raises:
        UserError: a prompt of a suite is a training prompt (``on_leak: refuse``), or longer than the policy may read.
    """
    rows, metrics = 0, dict[str, JsonValue]()
    trained = trained_plain(context, round_)
    for suite in due(context.config.evaluation.suites, round_):
        if not answers(suite):
            continue
        name = suite_name(suite)
        own = folder / name
        own.mkdir(exist_ok=True)
        if isinstance(suite, LmEvalSuite):
            counted: list[Prompt] = []

            def check(
                asked: list[Prompt], suite: Suite = suite, own: Path = own, counted: list[Prompt] = counted
            ) -> None:
                write_json(own / LEAKED, leaks(suite, asked, trained))
                counted += asked

            measure_tasks(context, round_, suite, own, workers, check).write(own / SUITE_MEASURED)
            rows += len(counted)
            metrics[name] = {"questions": len(counted)}
        else:
            asked = questions(suite)
            write_json(own / LEAKED, leaks(suite, asked, trained))
            outcome = _sampled(context, round_, suite, asked, own, workers)
            rows += outcome.rows
            metrics[name] = outcome.metrics
    return Outcome(rows, metrics)


def _sampled(
    context: Context, round_: int, suite: Suite, asked: list[Prompt], folder: Path, workers: Workers
) -> Outcome:
    config, name = context.config, suite_name(suite)
    given = None if isinstance(suite, LmEvalSuite | RewardBenchSuite) else suite.max_tokens
    most = config.sampling.max_tokens if given is None else given
    settings = SamplingSettings(n=1, temperature=0.0, max_tokens=most, stop=config.sampling.stop)
    source = SampledFrom(context.run.stage(round_, "policy"))
    outcome = sample_stage(context, round_, folder, workers, asked, settings, f"suite {name}", source)
    if outcome.rows < len(asked):
        raise UserError(
            f"evaluation.suites: {name}: {len(asked) - outcome.rows} of {len(asked)} prompts are longer than "
            f"chat.max_prompt_tokens ({config.chat.max_prompt_tokens}), or refused by the chat template; a suite is "
            "measured whole"
        )
    return outcome


def trained_plain(context: Context, round_: int) -> frozenset[str]:
    """What is left of training prompts without case, spaces and Unicode form."""
    prompts: Iterable[Prompt] = chain(
        training_prompts(context, round_), (row.prompt for row in text_preferences(context))
    )
    return frozenset(map(plain_id, prompts))


def leaks(suite: Suite, asked: list[Prompt], trained: frozenset[str]) -> list[JsonValue]:
    """Return the numbers, from 1, of the suite's prompts that are training prompts.

    Raises ``UserError`` that names them if the suite's ``on_leak`` is refuse.
    """
    found = [number for number, prompt in enumerate(asked, 1) if plain_id(prompt) in trained]
    if not found:
        return []
    shown = ", ".join(map(str, found[:_SHOWN])) + (" and others" if len(found) > _SHOWN else "")
    first = one_line(asked[found[0] - 1].messages[-1].content)[:100]
    said = (
        f"evaluation.suites: {suite_name(suite)}: {len(found)} of {len(asked)} prompts are training prompts too (rows "
        f"{shown}; the first: {first!r})"
    )
    if suite.on_leak == "refuse":
        raise UserError(f"{said}; remove them from either, or set on_leak: warn")
    logger.warning("%s", said)
    return [*found]
