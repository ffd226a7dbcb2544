"""Groups of responses to prompts, sampled and written shard by shard: shards written before a kill are kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from pydantic import JsonValue

from flows.stages.context import Context, Outcome, offending_file, policy_chat
from flows.workers.local import Workers
from flows.workers.messages import Loaded, NextShard
from pipeline.config import ChatSettings, SamplingSettings
from pipeline.errors import RunError
from pipeline.evaluation.metrics import describe_thinking
from pipeline.models.chat import load_chat
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_group_file, read_groups, write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import Group, Prompt, Response, derive_seed

_Answer = tuple[Response, ...]
_Shard = Sequence[tuple[Prompt, tuple[int, ...]]]


@dataclass(frozen=True)
class SampledFrom:
    """The model that responses come from.

    Attributes:
        stage: with the model's folder, or a pointer to it, and its probe.
        mixed: of a mixture with it.
        chat: of a model that is not the run's own; None: the policy's.
    """

    stage: Stage
    mixed: Stage | None = None
    chat: ChatSettings | None = None


def sample_stage(
    context: Context,
    round_: int,
    folder: Path,
    workers: Workers,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    purpose: str,
    source: SampledFrom,
) -> Outcome:
    """Sample responses of the model in ``source`` to ``prompts``."""
    config = context.config
    policy = context.model_path(source.stage)
    chat = policy_chat(config, policy) if source.chat is None else load_chat(str(policy), source.chat)
    tokenised = [(prompt, chat.prompt_ids_if_written(prompt.messages)) for prompt in prompts]
    longest = config.chat.max_prompt_tokens
    written = [(prompt, ids) for prompt, ids in tokenised if ids is not None]
    kept = [(prompt, ids) for prompt, ids in written if len(ids) <= longest]
    dropped = {"over_long": len(written) - len(kept), "refused": len(prompts) - len(written)}
    if not kept:
        raise RunError(
            f"no prompt is left: {dropped['over_long']} are longer than chat.max_prompt_tokens ({longest}), and the "
            f"chat template refuses {dropped['refused']}"
        )
    shards = {
        folder / f"shard_{index:05d}.parquet": kept[start : start + config.shard_size]
        for index, start in enumerate(range(0, len(kept), config.shard_size))
    }
    seals = Seals(folder)
    missing = {file: s for file, s in shards.items() if not (seals.hold(file.name) and _answers(file, s))}
    requests = [
        SampleRequest(ids, derive_seed(config.seed, purpose, round_, prompt.id))
        for shard in missing.values()
        for prompt, ids in shard
    ]
    # One call for all shards: the engine works on the next ones while one is being written.
    answers = _drawn(context, workers, source, requests, settings) if requests else iter(())
    _write(context, shards, missing, seals, answers, len(kept))
    thinks = chat.thoughts.expected
    return Outcome(len(kept), response_metrics(folder, dropped, workers.swaps.get(str(policy)), thinks=thinks))


def _drawn(
    context: Context,
    workers: Workers,
    source: SampledFrom,
    requests: Sequence[SampleRequest],
    settings: SamplingSettings,
) -> Iterator[_Answer]:
    place = (context.model_path(source.stage), source.stage.folder)
    if source.chat is not None:
        return workers.sample_second(source.chat, *place, requests, settings)
    beside = () if source.mixed is None else ((context.model_path(source.mixed), source.mixed.folder),)
    return workers.sample(*place, requests, settings, *beside)


def _answers(file: Path, shard: _Shard) -> bool:
    """Return whether the file's responses are to these ids; an earlier version may have written prompts otherwise."""
    return [group.prompt_ids for group in read_group_file(file)] == [ids for _, ids in shard]


def _write(
    context: Context,
    shards: Mapping[Path, _Shard],
    missing: Mapping[Path, _Shard],
    seals: Seals,
    answers: Iterator[_Answer],
    total: int,
) -> None:
    """Write each missing shard to its file as soon as its prompts are answered; tell of all of them, in order."""
    done, tokens = total - sum(map(len, missing.values())), 0
    for file in shards:
        groups = []
        for (prompt, ids), answer in zip(shard := missing.get(file, ()), islice(answers, len(shard)), strict=True):
            groups.append(Group(prompt, ids, answer))
            done, tokens = done + 1, tokens + sum(len(response.token_ids) for response in answer)
            context.report(done, total, f"{tokens} tokens")
        if groups:
            _require_finite(context, file, groups)
            write_groups(file, groups, seals.of(file.name))
        context.on_shard(NextShard(file.name, seals.sha256(file.name), total))
    # A call that is not read to its end counts as abandoned.
    if next(answers, None) is not None:
        raise RunError("the sampler answered more prompts than it was given")


def _require_finite(context: Context, file: Path, groups: Sequence[Group]) -> None:
    """Raise ``RunError`` if the engine gave NaN or infinite log-probabilities; such a shard is not kept."""
    wrong = [g for g in groups if not all(math.isfinite(logp) for r in g.responses for logp in r.logprobs)]
    if not wrong:
        return
    title = file.parent.relative_to(context.run.root).as_posix().replace(".partial", "")
    kept = offending_file(context, title)
    write_groups(kept, wrong)
    raise RunError(
        f"the sampler's log-probabilities of {len(wrong)} of {len(groups)} prompts of {file.name} are not finite; "
        f"the rows are in {kept}, the shard is not kept"
    )


def mixture_facts(settings: SamplingSettings, other: Stage) -> dict[str, JsonValue]:
    """What is told of a mixture, whichever way it is sampled."""
    assert settings.mixture is not None, "asked for a mixture alone"
    return {"reference": settings.mixture.reference, "weight": settings.mixture.weight, "of": other.title}


def response_metrics(
    folder: Path, dropped: Mapping[str, int], swap: Loaded | None, *, thinks: bool
) -> dict[str, JsonValue]:
    """``thinks``: whether the policy's template has thoughts, so that their absence tells something too."""
    thinking = describe_thinking(response for group in read_groups(folder) for response in group.responses)
    responses = tokens = stopped = 0
    total_logprob = 0.0
    for group in read_groups(folder):
        for response in group.responses:
            responses += 1
            tokens += len(response.token_ids)
            stopped += response.finish_reason == "stop"
            total_logprob += sum(response.logprobs)
    return {
        "responses": responses,
        "tokens": tokens,
        "stop_rate": stopped / max(responses, 1),
        "logprob_per_token": total_logprob / max(tokens, 1),
        **(thinking if thinks or thinking["thought_rate"] else {}),
        **{f"dropped_{cause}_prompts": count for cause, count in dropped.items()},
        "weight_handshake": None if swap is None else msgspec.structs.asdict(swap),
    }
