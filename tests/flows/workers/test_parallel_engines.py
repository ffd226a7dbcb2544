"""vLLM's tensor parallelism through prefloop's settings: one engine of two processes answers as one of one does."""

import os
from pathlib import Path

import pytest

from flows.workers.messages import Loaded
from flows.workers.pool.cards import Machine
from flows.workers.pool.seating import seating_of
from pipeline.config import SamplingSettings
from pipeline.config.files import load_config
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_sampler import vllm_process, write_true_probe

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each rank has a core of its own"),
]
GREEDY = SamplingSettings(n=1, temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


def answers(folder: Path, log: Path, **settings: int) -> tuple[Loaded, list[Response]]:
    """Greedy answers of an engine that is seated as a run seats it."""
    prompts = log.with_name("prompts.jsonl")
    prompts.parent.mkdir(parents=True)
    prompts.write_text('{"prompt": "the cat"}\n' * 8)
    file = log.with_name("job.yaml")
    file.write_text(
        f"name: job\nmode: iterative\npolicy: {{path: {folder}}}\nprompts: {{path: {prompts}}}\n"
        f"held_out: {{prompts: 1}}\nscorer: {{kind: length, target_words: 3}}\nsampler: {settings}\n"
    )
    cores = tuple(sorted(os.sched_getaffinity(0)))[:2]
    (seat,) = seating_of(load_config([file]), Machine((), cores)).engines
    assert seat.ranks == max(settings.values(), default=1)
    requests = [SampleRequest(tuple(range(10, 14 + n)), n) for n in range(6)]
    with vllm_process(log, [seat], context=64, shard_timeout=400, **settings) as pool:
        loaded = pool.load(str(folder))
        return loaded, [response for (response,) in pool.sample(requests, GREEDY)]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Response]:
    loaded, found = answers(folder, tmp_path_factory.mktemp("one") / "logs" / "sampler.log")
    assert loaded.max_difference < 1e-4
    assert len({response.token_ids for response in found}) > 1
    return found


def test_two_ranks_give_the_tokens_of_one(folder: Path, alone: list[Response], tmp_path: Path) -> None:
    loaded, found = answers(folder, tmp_path / "logs" / "sampler.log", tensor_parallel_size=2)
    assert loaded.max_difference < 1e-4
    assert [response.token_ids for response in found] == [response.token_ids for response in alone]
    for one, two in zip(alone, found, strict=True):
        assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)
