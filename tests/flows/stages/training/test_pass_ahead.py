"""Reference passes that follow labels while others are sampled: the same files, and nothing is computed twice."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training import ahead
from flows.stages.training import reference as stage
from flows.stages.training.reference import AHEAD, ReferenceScores
from flows.workers.messages import NextShard
from flows.workers.pool.overlap import overlap_lines, streams_reference
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.training.batches.examples import Example
from tests.support.finished_run import digests
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

# Eight prompts a round and as many pairs: two shards and two thirds of one.
PAIRS = 3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("job"))
    (folder / "reward.py").write_text("def reward(prompt, response, answer):\n    return float('barn' in response)\n")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stage, ahead):
        monkeypatch.setattr(module, "SHARD", PAIRS)


def begun(job: Path, root: Path, *settings: str) -> Context:
    context = opened(job, root, *settings)
    begin(context)
    return context


def opened(job: Path, root: Path, *settings: str) -> Context:
    scorer = f"scorer={{kind: function, file: {job / 'reward.py'}}}"
    return open_context(job, root, "iterative", "shard_size=2", "placement=split", scorer, *settings)


def told(context: Context, few: int | None = None) -> Iterator[NextShard]:
    """The samples' shards, as their maker tells of them; ``few``: then no more, since it has failed."""
    samples = context.run.stage(1, "samples").require()
    names = [name for name in samples.files if name.endswith(".parquet")]
    for name in sorted(names)[:few]:
        yield NextShard(name, str(samples.files[name]["sha256"]), samples.rows)
    if few is not None:
        raise RunError("sampling ended")


def sampled(context: Context) -> None:
    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(context, 1, "samples", workers)


def rest(context: Context) -> dict[str, object]:
    for name in ("pairs", "reference"):
        run_stage(context, 1, name)
    assert not (context.run.root / "round_001" / AHEAD).exists()
    return {name: sha256 for name, sha256 in digests(context.run).items() if name.startswith("round_001")}


def made_ahead(context: Context) -> set[Path]:
    return {*(context.run.root / "round_001" / AHEAD).glob("*.parquet")}


def shards_taken(context: Context) -> object:
    return context.run.stage(1, "reference").require().metrics.get("shards_made_ahead")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each computed shard has."""
    sizes: list[int] = []
    compute = ReferenceScores._rows

    def rows(scores: ReferenceScores, examples: Sequence[Example], start: int) -> Any:
        sizes.append(len(examples))
        return compute(scores, examples, start)

    monkeypatch.setattr(ReferenceScores, "_rows", rows)
    return sizes


@pytest.fixture(scope="module")
def sequential(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "SHARD", PAIRS)
        context = begun(job, tmp_path_factory.mktemp("one") / "run")
        sampled(context)
        run_stage(context, 1, "labels")
        assert not made_ahead(context)
        return rest(context)


def test_the_files_are_those_of_one_stage_after_the_other(
    job: Path, sequential: dict[str, object], computed: list[int], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    sampled(context)
    run_stage(replace(context, shards=told(context)), 1, "labels")
    assert len(made_ahead(context)) == 2 and computed == [PAIRS, PAIRS]
    assert rest(context) == sequential and computed == [PAIRS, PAIRS, 2]
    assert shards_taken(context) == 2


def test_what_a_stopped_run_has_made_is_not_made_again(
    job: Path, sequential: dict[str, object], computed: list[int], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    sampled(context)
    with pytest.raises(RunError, match="sampling ended"):
        run_stage(replace(context, shards=told(context, few=2)), 1, "labels")
    assert computed == [PAIRS]
    run_stage(replace(context, shards=told(context)), 1, "labels")
    assert computed == [PAIRS, PAIRS]
    assert rest(context) == sequential and computed == [PAIRS, PAIRS, 2]


def test_a_changed_shard_is_made_again(
    job: Path, sequential: dict[str, object], computed: list[int], tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    sampled(context)
    run_stage(replace(context, shards=told(context)), 1, "labels")
    spoilt, whole = sorted(made_ahead(context))
    spoilt.write_bytes(whole.read_bytes())
    assert rest(context) == sequential and shards_taken(context) == 1


def test_shards_of_other_pairs_are_not_taken(job: Path, computed: list[int], tmp_path: Path) -> None:
    context = begun(job, tmp_path / "run")
    sampled(context)
    run_stage(replace(context, shards=told(context)), 1, "labels")
    other = opened(job, tmp_path / "run", "pairing.rule=all")
    rest(other)
    rows = other.run.stage(1, "reference").require().rows
    assert shards_taken(other) is None and rows > 8 and sum(computed) == 2 * PAIRS + rows


def test_a_reference_that_fails_beside_labels_fails_in_its_own_stage(
    job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = begun(job, tmp_path / "run")
    sampled(context)
    with monkeypatch.context() as patched:
        patched.setattr(stage, "math", SimpleNamespace(isfinite=lambda value: False))
        run_stage(replace(context, shards=told(context)), 1, "labels")
        assert not made_ahead(context)
        run_stage(context, 1, "pairs")
        with pytest.raises(RunError, match="not finite; the row is in"):
            run_stage(context, 1, "reference")


def config(**more: Any) -> RunConfig:
    judge = {"kind": "judge", "server": {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}}
    plain = {"name": "x", "mode": "iterative", "policy": {"path": "m"}, "prompts": {"path": "p"}, "scorer": judge}
    return RunConfig.model_validate({**plain, "placement": "split", **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "follows sealed labels, a shard of pairs at a time"),
        ({"placement": "colocated"}, "waits for all pairs: it computes where the engines do"),
        ({"cluster": {"kind": "ray"}}, "waits for all pairs: it runs in the cluster's"),
        ({"scorer": {"kind": "classifier", "path": "m"}}, "waits for all pairs: the reward model"),
        ({"pairing": {"drop_repeated": True}}, "waits for all pairs: rows of other rounds"),
        ({"replay": {"share": 0.5}}, "waits for all pairs: rows of other rounds"),
        ({"loss": {"preset": "vpo_online"}}, "waits for all pairs: it also reads responses"),
    ],
)
def test_the_plan_says_whether_it_waits_and_why(more: dict[str, Any], said: str) -> None:
    made = config(**more)
    assert f"reference pass: {said}" in " · ".join(overlap_lines(made))
    assert streams_reference(made) is not ("waits" in said)


def test_nothing_follows_where_labels_do_not_or_nothing_is_read() -> None:
    for more in ({"overlap": False}, {"scorer": {"kind": "length"}}, {"loss": {"preset": "simpo"}}):
        made = config(**more)
        assert not streams_reference(made) and "reference pass" not in " ".join(overlap_lines(made))
