"""Groups of responses to prompts, sampled and written shard by shard: shards written before a kill are kept."""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import overload

from pydantic import JsonValue

from flows.stages.context import Context, Outcome, offending_file, policy_chat
from flows.workers.local import Workers
from flows.workers.messages import Loaded, NextShard
from flows.workers.pool.sampler_pool import load_facts
from pipeline.config import ChatSettings, SamplingSettings
from pipeline.data.spool.token_file import TokenFile
from pipeline.errors import RunError
from pipeline.evaluation.metrics import SampleCounts
from pipeline.models.chat import Chat, load_chat
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_group_file, read_groups, write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import Group, Prompt, Response, derive_seed
from pipeline.types.counts import number_of

_Answer = tuple[Response, ...]


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
    with closing(TokenFile(folder)) as ids:
        kept = _Kept(ids)
        dropped = kept.fill(prompts, chat, config.chat.max_prompt_tokens)
        total, size = len(kept.prompts), config.shard_size
        shards = {
            folder / f"shard_{index:05d}.parquet": range(start, min(start + size, total))
            for index, start in enumerate(range(0, total, size))
        }
        seals = Seals(folder)
        missing = {f: rows for f, rows in shards.items() if not (seals.hold(f.name) and _answers(f, kept, rows))}
        requests = _Requests(kept, missing.values(), lambda asked: derive_seed(config.seed, purpose, round_, asked.id))
        # One call for all shards: the engine works on the next ones while one is being written.
        answers = _drawn(context, workers, source, requests, settings) if requests else iter(())
        counts = _write(context, kept, shards, missing, seals, answers)
    thinks = chat.thoughts.expected
    return Outcome(total, _told(counts, dropped, workers.swaps.get(str(policy)), thinks=thinks))


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


class _Kept:
    """The prompts that are sampled from, with their ids, which a file holds."""

    def __init__(self, ids: TokenFile) -> None:
        self.prompts: list[Prompt] = []
        self.ids = ids

    def fill(self, prompts: Iterable[Prompt], chat: Chat, longest: int) -> dict[str, int]:
        """Keep the prompts that ``chat`` writes in at most ``longest`` tokens; return the number of others, by cause.

        Raises:
            RunError: none is left.
        """
        dropped = {"over_long": 0, "refused": 0}
        for prompt in prompts:
            ids = chat.prompt_ids_if_written(prompt.messages)
            if ids is None or len(ids) > longest:
                dropped["refused" if ids is None else "over_long"] += 1
            else:
                self.prompts.append(prompt)
                self.ids.add(ids)
        if not self.prompts:
            raise RunError(
                f"no prompt is left: {dropped['over_long']} are longer than chat.max_prompt_tokens ({longest}), and "
                f"the chat template refuses {dropped['refused']}"
            )
        return dropped


class _Requests(Sequence[SampleRequest]):
    """Requests for the kept prompts in ``rows``, each made when it is asked for."""

    def __init__(self, kept: _Kept, rows: Iterable[range], seed: Callable[[Prompt], int]) -> None:
        self._kept, self._seed = kept, seed
        self._places = array("q", chain.from_iterable(rows))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> SampleRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SampleRequest]: ...
    def __getitem__(self, index: int | slice) -> SampleRequest | Sequence[SampleRequest]:
        if isinstance(index, slice):
            return [self._of(place) for place in self._places[index]]
        return self._of(self._places[index])

    def _of(self, place: int) -> SampleRequest:
        return SampleRequest(self._kept.ids[place], self._seed(self._kept.prompts[place]))


def _answers(file: Path, kept: _Kept, rows: range) -> bool:
    """Return whether the file's responses are to these ids; an earlier version may have written prompts otherwise."""
    return [group.prompt_ids for group in read_group_file(file)] == [kept.ids[row] for row in rows]


def _write(
    context: Context,
    kept: _Kept,
    shards: Mapping[Path, range],
    missing: Mapping[Path, range],
    seals: Seals,
    answers: Iterator[_Answer],
) -> SampleCounts:
    """Write each missing shard to its file as soon as its prompts are answered; tell of all of them, in order.

    Returns counts over all.
    """
    counts, total = SampleCounts(), len(kept.prompts)
    done, tokens = total - sum(map(len, missing.values())), 0
    for file in shards:
        groups = []
        for row, answer in zip(rows := missing.get(file, range(0)), islice(answers, len(rows)), strict=True):
            groups.append(Group(kept.prompts[row], kept.ids[row], answer))
            done, tokens = done + 1, tokens + sum(len(response.token_ids) for response in answer)
            context.report(done, total, number_of(tokens, "token"))
        if groups:
            _require_finite(context, file, groups)
            write_groups(file, groups, seals.of(file.name))
        for group in groups or read_group_file(file):
            for response in group.responses:
                counts.add(response)
        context.on_shard(NextShard(file.name, seals.sha256(file.name), total))
    # A call that is not read to its end counts as abandoned.
    if next(answers, None) is not None:
        raise RunError("the sampler answered more prompts than it was given")
    return counts


def _require_finite(context: Context, file: Path, groups: Sequence[Group]) -> None:
    """Raise ``RunError`` if the engine gave NaN or infinite log-probabilities; such a shard is not kept."""
    # A sum of log-probabilities that are finite is finite too.
    if math.isfinite(sum(sum(response.logprobs) for group in groups for response in group.responses)):
        return
    wrong = [g for g in groups if not all(math.isfinite(sum(r.logprobs)) for r in g.responses)]
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
    counts = SampleCounts()
    for group in read_groups(folder):
        for response in group.responses:
            counts.add(response)
    return _told(counts, dropped, swap, thinks=thinks)


def _told(
    counts: SampleCounts, dropped: Mapping[str, int], swap: Loaded | None, *, thinks: bool
) -> dict[str, JsonValue]:
    thinking = counts.thinking
    return {
        **counts.measures,
        **(thinking if thinks or thinking["thought_rate"] else {}),
        **{f"dropped_{cause}_prompts": count for cause, count in dropped.items()},
        "weight_handshake": load_facts(swap),
    }
