"""What a prompt is answered with derives from run, round and prompt: not from shards, order, or what else is asked."""

import json
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flows.stages.run import run_stage
from pipeline.config import SamplingSettings
from pipeline.models.chat import Chat
from pipeline.storage.rows import read_groups
from pipeline.types import Response
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def sampled(job: Path, root: Path, *settings: str) -> dict[str, tuple[Response, ...]]:
    """Round 1's responses by prompt."""
    context = open_context(job, root, "iterative", "prompts_per_round=null", *settings)
    begin(context)
    workers = InventedResponses(context.policy_path(0))
    run_stage(context, 1, "samples", workers)  # type: ignore[arg-type]
    return {group.prompt.id: group.responses for group in read_groups(context.run.stage(1, "samples").folder)}


def test_neither_shards_nor_order_nor_other_prompts_change_a_sample(job: Path, tmp_path: Path) -> None:
    first = sampled(job, tmp_path / "one")
    assert len(first) == 16 and len(set(first.values())) > 8
    assert sampled(job, tmp_path / "cut", "shard_size=3") == first
    rows = [json.loads(line) for line in (job / "pairs.jsonl").read_text().splitlines()]
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert sampled(job, tmp_path / "turned", f"prompts.path={turned}") == first
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(json.dumps(row) + "\n" for row in rows if row["prompt"][-1] in "02468"))
    some = sampled(job, tmp_path / "fewer", f"prompts.path={fewer}", "held_out.prompts=1")
    shared = some.keys() & first.keys()
    assert len(shared) > 4 and all(some[prompt] == first[prompt] for prompt in shared)


def test_the_seed_of_the_run_does(job: Path, tmp_path: Path) -> None:
    first, other = (sampled(job, tmp_path / str(seed), f"seed={seed}") for seed in (0, 1))
    shared = first.keys() & other.keys()
    assert sum(first[prompt] != other[prompt] for prompt in shared) > len(shared) / 2


def test_shards_of_a_killed_stage_are_kept_if_their_prompts_are_still_written_so(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(job, tmp_path / "run", "iterative", "prompts_per_round=null", "shard_size=4")
    begin(context)
    workers = InventedResponses(context.policy_path(0))
    asked: list[int] = []
    answered, whole = iter((8, 4, None)), workers.sample

    def sample(policy: Path, source: Path, requests: Any, settings: SamplingSettings) -> Any:
        asked.append(len(requests))
        return islice(whole(policy, source, requests, settings), next(answered))

    monkeypatch.setattr(workers, "sample", sample)
    encode = Chat.prompt_ids_if_written
    for written in (encode, encode, lambda chat, turns: (5, *encode(chat, turns))):
        monkeypatch.setattr(Chat, "prompt_ids_if_written", written)
        with suppress(ValueError):
            run_stage(context, 1, "samples", workers)  # type: ignore[arg-type]
    assert asked == [16, 8, 16]
    groups = [*read_groups(context.run.stage(1, "samples").folder)]
    assert len(groups) == 16 and all(group.prompt_ids[0] == 5 for group in groups)
