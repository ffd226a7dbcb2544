"""Shards of samples that are labelled while the next ones are sampled: the same files as one stage after the other."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.stages.context import Context
from flows.stages.labels.feed import ShardFeed
from flows.stages.run import run_stage
from flows.workers.messages import Further, NextShard
from flows.workers.pool.shard_queue import ShardQueue
from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.rows import read_groups
from pipeline.types import Response
from tests.support.finished_run import digests
from tests.support.judge_server import JudgeServer, judge_server
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

PATIENCE = 120.0
# Eight prompts a round, so four shards.
SHARDS = 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def begun(job: Path, root: Path, *settings: str) -> Context:
    context = open_context(job, root, "iterative", "shard_size=2", *settings)
    begin(context)
    return context


class Watched(InventedResponses):
    """Samples the last shard only once the first one is labelled; ``fails``: ends with an error at that prompt."""

    def __init__(self, context: Context, fails: int | None = None, seed: int = 0) -> None:
        super().__init__(context.policy_path(0))
        self._first = context.run.stage(1, "labels").partial / "shard_00000.parquet"
        self._fails, self._seed = fails, seed

    def sample(
        self, policy: Path, probe: Path, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        own = [replace(request, seed=request.seed + self._seed) for request in requests]
        for number, answer in enumerate(super().sample(policy, probe, own, settings)):
            if number == 2 * (SHARDS - 1):
                seen(self._first)
            if number == self._fails:
                raise RunError("the engine died")
            yield answer


def seen(file: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < end, f"{file} does not come while sampling goes on"
        time.sleep(0.02)


def feed_of(queue: ShardQueue) -> ShardFeed:
    """What a child makes of messages."""
    came: list[Further] = []

    def receive() -> NextShard | None:
        queue.forward(came.append)
        found = came.pop(0) if came else None
        assert found is None or isinstance(found, NextShard)
        return found

    return ShardFeed(receive, lambda: None)


def overlapped(context: Context, workers: Any) -> tuple[BaseException | None, BaseException | None]:
    """Both stages at once; their errors."""
    queue = ShardQueue("labels")
    with ThreadPoolExecutor(1) as threads:
        beside: Future[bool] = threads.submit(run_stage, replace(context, shards=feed_of(queue)), 1, "labels")
        try:
            run_stage(replace(context, on_shard=queue.put), 1, "samples", workers)
        except RunError as error:
            queue.end(whole=False)
            return error, beside.exception(PATIENCE)
        queue.end(whole=True)
        return None, beside.exception(PATIENCE)


def made(context: Context) -> dict[str, object]:
    return {name: sha256 for name, sha256 in digests(context.run).items() if name.startswith("round_001")}


@pytest.fixture(scope="module")
def sequential(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    context = begun(job, tmp_path_factory.mktemp("one") / "run")
    workers: Any = InventedResponses(context.policy_path(0))
    for name in ("samples", "labels"):
        run_stage(context, 1, name, workers)
    return made(context)


def test_the_files_are_those_of_one_stage_after_the_other(
    job: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    assert overlapped(context, Watched(context)) == (None, None)
    assert made(context) == sequential and len(sequential) == 3 * SHARDS
    manifest = context.run.stage(1, "labels").require()
    assert manifest.made_from["round_001/samples"] == context.run.stage(1, "samples").require().sha256


def test_labels_stay_if_sampling_fails_and_only_the_others_are_made(
    job: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    ours, theirs = overlapped(context, Watched(context, fails=7))
    assert "the engine died" in str(ours) and "sampling ended before all was sampled" in str(theirs)
    kept = {file.name: file.stat().st_ino for file in context.run.stage(1, "labels").partial.glob("*.parquet")}
    assert {"shard_00000.parquet"} <= kept.keys() <= {f"shard_{n:05d}.parquet" for n in range(3)}
    assert overlapped(context, Watched(context)) == (None, None)
    after = {file.name: file.stat().st_ino for file in context.run.stage(1, "labels").folder.glob("*.parquet")}
    assert made(context) == sequential and after.items() >= kept.items()


def test_labels_begun_beside_sampling_are_finished_alone(
    job: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    overlapped(context, Watched(context, fails=7))
    kept = {file.name: file.stat().st_ino for file in context.run.stage(1, "labels").partial.glob("*.parquet")}
    workers: Any = InventedResponses(context.policy_path(0))
    for name in ("samples", "labels"):
        run_stage(context, 1, name, workers)
    after = {file.name: file.stat().st_ino for file in context.run.stage(1, "labels").folder.glob("*.parquet")}
    assert made(context) == sequential and after.items() >= kept.items()


def test_labels_of_other_samples_are_made_again(job: Path, tmp_path: Path) -> None:
    context = begun(job, tmp_path / "run")
    overlapped(context, Watched(context, fails=7))
    samples = context.run.stage(1, "samples")
    for file in samples.partial.iterdir():
        file.unlink()
    assert overlapped(context, Watched(context, seed=1)) == (None, None)
    sampled = [group.responses for group in read_groups(samples.folder)]
    assert [group.responses for group in read_groups(context.run.stage(1, "labels").folder)] == sampled


def test_sampling_goes_on_if_labels_fail(job: Path, sequential: dict[str, object], tmp_path: Path) -> None:
    function = tmp_path / "reward.py"
    function.write_text("raise RuntimeError('no such judge')\n")
    scorer = f"scorer={{kind: function, file: {function}}}"
    context = begun(job, tmp_path / "run", scorer)
    ours, theirs = overlapped(context, InventedResponses(context.policy_path(0)))
    assert ours is None and "no such judge" in str(theirs)
    samples = {name: sha256 for name, sha256 in sequential.items() if "/samples/" in name}
    assert made(context) == samples


def test_samples_that_change_while_they_are_labelled_are_refused(job: Path, tmp_path: Path) -> None:
    context = begun(job, tmp_path / "run")
    queue, released = ShardQueue("labels"), threading.Event()
    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(replace(context, on_shard=queue.put), 1, "samples", workers)
    queue.end(whole=True)

    def told() -> Iterator[NextShard]:
        for shard in feed_of(queue):
            yield replace_sha256(shard) if released.is_set() else shard
            released.set()

    with pytest.raises(RunError, match=r"shard_00001\.parquet: has changed since it was written"):
        run_stage(replace(context, shards=told()), 1, "labels")


def replace_sha256(shard: NextShard) -> NextShard:
    return NextShard(shard.name, "0" * 64, shard.rows)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(lambda question: f"Fine.\nScore: {1 + sum(map(ord, question)) % 9}") as made:
        yield made


def judged(server: JudgeServer, calls: int, *more: str) -> tuple[str, ...]:
    url = f"{{base_url: '{server.url}', model: judge, concurrency: 1, attempts: 1, budget: {{calls: {calls}}}}}"
    return (f"scorer={{kind: judge, mode: pointwise, server: {url}}}", "labelling.min_yield=0.9", *more)


def rows(context: Context) -> dict[str, object]:
    """Without the counts of what was asked and what came from the cache."""
    return {name: sha256 for name, sha256 in made(context).items() if not name.endswith(".json")}


def one_after_the_other(context: Context) -> dict[str, object]:
    workers: Any = InventedResponses(context.policy_path(0))
    for name in ("samples", "labels"):
        run_stage(context, 1, name, workers)
    return rows(context)


def test_a_budget_that_ends_meanwhile_is_never_exceeded_and_nothing_is_lost_or_asked_twice(
    job: Path, server: JudgeServer, tmp_path: Path
) -> None:
    expected = one_after_the_other(begun(job, tmp_path / "one" / "run", *judged(server, 1000)))
    whole, root = len(server.seen), tmp_path / "many" / "run"
    context = begun(job, root, *judged(server, 13))
    ours, theirs = overlapped(context, Watched(context))
    assert ours is None and "below labelling.min_yield 0.9" in str(theirs) and "budget" in str(theirs)
    assert context.run.stage(1, "samples").require().rows == 8, "all is sampled, whatever labels cost"
    with pytest.raises(RunError, match="budget"):
        run_stage(context, 1, "labels")
    assert len(server.seen) == whole + 13 < 2 * whole
    run_stage(open_context(job, root, "iterative", "shard_size=2", *judged(server, 1000)), 1, "labels")
    asked = [str(body["messages"]) for body in server.seen]
    assert sorted(asked[:whole]) == sorted(asked[whole:]) and len(set(asked)) == whole
    assert rows(context) == expected


def test_a_budget_leaves_out_the_labels_that_it_leaves_out_of_one_stage_after_the_other(
    job: Path, server: JudgeServer, tmp_path: Path
) -> None:
    few = judged(server, 13, "labelling.min_yield=0.1")
    expected = one_after_the_other(begun(job, tmp_path / "one" / "run", *few))
    context = begun(job, tmp_path / "many" / "run", *few)
    assert overlapped(context, Watched(context)) == (None, None)
    assert rows(context) == expected and len(server.seen) == 26
    missing = context.run.stage(1, "labels").require().metrics["missing_labels"]
    assert isinstance(missing, int) and 0 < missing < 24
