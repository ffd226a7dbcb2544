"""samples, calibration, evaluation_samples: prompts -> groups of responses, through the sampler child.

Works shard by shard: shards written before a kill are kept.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec
from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage
from flows.stages.context import Context, Outcome, offending_file, policy_chat
from flows.stages.data import held_out_prompts, prompts_by_round
from flows.workers.local import Workers
from flows.workers.messages import Loaded, NextShard
from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.evaluation.metrics import describe_thinking
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_group_file, read_groups, read_preference_rows, write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import Group, Prompt, Response, derive_seed

_Answer = tuple[Response, ...]
_Shard = Sequence[tuple[Prompt, tuple[int, ...]]]


def samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """K responses of the policy that the round starts from to each of this round's prompts."""
    prompts = round_prompts(context, round_)
    policy = context.run.stage(parent(context.run, context.config, round_), "policy")
    return _sample(context, round_, folder, workers, prompts, context.config.sampling, "samples", policy)


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
        outcome = _sample(context, round_, folder / name, workers, prompts, settings, purpose, policy)
        rows += outcome.rows
        metrics[name] = outcome.metrics
    return Outcome(rows, metrics)


def calibration(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """One temperature-1 response of the round's reference policy to each prompt that the round trains on."""
    config = context.config
    prompts = {row.prompt.id: row.prompt for row in read_preference_rows(context.run.stage(round_, "pairs").folder)}
    settings = SamplingSettings(n=1, max_tokens=config.sampling.max_tokens, stop=config.sampling.stop)
    policy = reference_stage(context.run, config, round_)
    return _sample(context, round_, folder, workers, [*prompts.values()], settings, "calibration", policy)


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


def _sample(
    context: Context,
    round_: int,
    folder: Path,
    workers: Workers,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    purpose: str,
    source: Stage,
) -> Outcome:
    """Sample responses of the policy in (or pointed to by) the stage ``source``."""
    config = context.config
    policy = context.model_path(source)
    chat = policy_chat(config, policy)
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
    answers = workers.sample(policy, source.folder, requests, settings) if requests else iter(())
    _write(context, shards, missing, seals, answers, len(kept))
    thinks = chat.thoughts.expected
    return Outcome(len(kept), _metrics(folder, dropped, workers.swaps.get(str(policy)), thinks=thinks))


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


def _metrics(folder: Path, dropped: Mapping[str, int], swap: Loaded | None, *, thinks: bool) -> dict[str, JsonValue]:
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
