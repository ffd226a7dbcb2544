"""Speeds of a config's parts, measured for a few seconds on the parts themselves."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.planning.probe import model_to_sample_from
from flows.workers.local import with_context
from flows.workers.pool.sampler_pool import SamplerPool
from flows.workers.pool.seating import seating_of
from pipeline.config import JudgeScorer, RunConfig, ScorerSettings, scorers_of
from pipeline.models.chat import Chat
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Group, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.labeller import label

# Sequences of the measured shard, tokens of the first calls, and seconds for the measurement.
SEQUENCES, FIRST_TOKENS, _SECONDS = 256, 8, 5.0


def measured_rates(
    config: RunConfig, origin: str, shape: Any, chat: Chat, prompts: Sequence[Prompt], scratch: Path, skip: set[str]
) -> dict[str, float]:
    """Measure tokens a second of the configured sampler and scorer, except those in ``skip``.

    Args:
        config: of the run.
        origin: folder or hub name of the start policy; without weights there, sampling uses random ones.
        shape: its transformers config.
        chat: of the start policy.
        prompts: to sample from.
        scratch: for a model folder, a weight probe and the engine's log.
        skip: kinds whose rates are known.
    """
    if config.mode == "offline" or {"sampling", "labelling"} <= skip:
        return {}
    folder = model_to_sample_from(origin, shape, chat, scratch / "sampled", trust_remote_code=config.trusts_policy)
    count = max(1, min(SEQUENCES // config.sampling.n, config.shard_size))
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    requests = [SampleRequest(chat.prompt_ids(p.messages), seed) for seed, p in enumerate(chosen)]
    log = scratch / "sampler.log"
    seats = seating_of(config).engines
    with SamplerPool(with_context(config), config.chat, log, config.trusts_policy, seats=seats) as sampler:
        sampler.load(folder, str(scratch / "sampled"))

        def drawn(tokens: int) -> tuple[float, list[tuple[Response, ...]]]:
            settings = config.sampling.model_copy(update={"max_tokens": min(tokens, config.sampling.max_tokens)})
            started = time.perf_counter()
            answers = list(sampler.sample(requests, settings))
            return time.perf_counter() - started, answers

        # The first call compiles and warms up; the second one shows how many tokens fit into the time.
        drawn(FIRST_TOKENS)
        short, _ = drawn(FIRST_TOKENS)
        took, answers = drawn(max(FIRST_TOKENS, round(FIRST_TOKENS * _SECONDS / short)))
    rates = {"sampling": sum(len(r.token_ids) for answer in answers for r in answer) / took}
    groups = [Group(p, q.prompt_ids, answer) for p, q, answer in zip(chosen, requests, answers, strict=True)]
    if config.scorer is None or "labelling" in skip or _asks_a_server(config.scorer):
        return rates
    return rates | {"labelling": _labelling_rate(config.scorer, groups)}


def _asks_a_server(settings: ScorerSettings) -> bool:
    """Whether labels may cost money: a plan never asks for those."""
    return any(isinstance(scorer, JudgeScorer) for _, scorer in scorers_of(settings))


def _labelling_rate(settings: ScorerSettings, groups: list[Group]) -> float:
    with Accounts(LabelCache(None), Ledger(None)) as accounts:
        labeller = build_labeller(settings, accounts)
        label(groups[:1], labeller)
        # Answers that the first call left in the cache would not be labelled again.
        accounts.cache.close()
        started = time.perf_counter()
        label(groups, labeller)
    took = max(time.perf_counter() - started, 1e-9)
    return sum(len(g.prompt_ids) + len(r.token_ids) for g in groups for r in g.responses) / took
