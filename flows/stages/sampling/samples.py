"""samples, calibration, evaluation_samples: prompts -> groups of responses, through the sampler child."""

from collections import deque
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import mixed_stage, reference_stage, sampled_round
from flows.stages.context import Context, Outcome
from flows.stages.data import held_out_prompts, prompts_by_round
from flows.stages.sampling.resampled import resampled
from flows.stages.sampling.shards import SampledFrom, mixture_facts, sample_stage
from flows.workers.local import Workers
from pipeline.config import SamplingSettings, TransformersSampler
from pipeline.storage.rows import read_preference_rows
from pipeline.types import Prompt, derive_seed


def samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """K responses to each of this round's prompts of the policy that it samples."""
    config, prompts = context.config, round_prompts(context, round_)
    policy, other = context.run.stage(sampled_round(context.run, config, round_), "policy"), None
    if config.sampling.mixture is not None:
        other = mixed_stage(context.run, config, round_)
    if other is None:
        settings = config.sampling.model_copy(update={"mixture": None})
        return sample_stage(context, round_, folder, workers, prompts, settings, "samples", SampledFrom(policy))
    if isinstance(config.sampler, TransformersSampler):
        settings = config.sampling
        outcome = sample_stage(
            context, round_, folder, workers, prompts, settings, "samples", SampledFrom(policy, other)
        )
        return Outcome(outcome.rows, outcome.metrics | {"mixture": mixture_facts(config.sampling, other)})
    return resampled(context, round_, folder, workers, prompts, policy, other)


def evaluation_samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """One greedy and a few temperature-1 responses of this round's policy to each held-out prompt."""
    config = context.config
    prompts = held_out_prompts(context)
    drawn = SamplingSettings(
        n=config.evaluation.samples, max_tokens=config.sampling.max_tokens, stop=config.sampling.stop
    )
    greedy = drawn.model_copy(update={"n": 1, "temperature": 0.0})
    rows, metrics = 0, dict[str, JsonValue]()
    for name, settings in (("greedy", greedy), ("sampled", drawn)):
        (folder / name).mkdir(exist_ok=True)
        purpose, policy = f"evaluation {name}", context.run.stage(round_, "policy")
        outcome = sample_stage(context, round_, folder / name, workers, prompts, settings, purpose, SampledFrom(policy))
        rows += outcome.rows
        metrics[name] = outcome.metrics
    return Outcome(rows, metrics)


def calibration(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """One temperature-1 response of the round's reference policy to each prompt that the round trains on."""
    config = context.config
    prompts = {row.prompt.id: row.prompt for row in read_preference_rows(context.run.stage(round_, "pairs").folder)}
    settings = SamplingSettings(n=1, max_tokens=config.sampling.max_tokens, stop=config.sampling.stop)
    policy = reference_stage(context.run, config, round_)
    return sample_stage(
        context, round_, folder, workers, [*prompts.values()], settings, "calibration", SampledFrom(policy)
    )


def round_prompts(context: Context, round_: int) -> list[Prompt]:
    """The training prompts of a round: all, or the next slice of a fixed shuffle, wrapping round.

    Added prompts come first, shuffled, before any used prompt.
    """
    by_round, wanted = prompts_by_round(context, round_), context.config.prompts_per_round
    everything = [prompt for prompts in by_round.values() for prompt in prompts]
    if wanted is None or wanted >= len(everything):
        return everything
    unused: deque[Prompt] = deque()
    used: deque[Prompt] = deque()
    taken: list[Prompt] = []
    for number in range(round_ + 1):
        came = by_round.get(number, [])
        unused += sorted(came, key=lambda prompt: derive_seed(context.config.seed, "order", prompt.id))
        count = min(wanted, len(unused) + len(used)) if number else 0
        taken = [unused.popleft() if unused else used.popleft() for _ in range(count)]
        used += taken
    return taken
