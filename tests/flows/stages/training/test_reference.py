"""What references said is computed once for all runs beside each other, and never taken on trust."""

import json
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training import reference as stage
from flows.stages.training.examples import examples_with_reference
from flows.stages.training.frozen import FrozenPolicy
from pipeline.errors import RunError
from pipeline.models.policy import load_for_scoring
from pipeline.storage.run_folder import StageWriter
from pipeline.training.batches.examples import Example
from pipeline.training.batches.reference_cache import ENTRY, ReferenceCache, entry_key, tokens_digest, weights_digest
from pipeline.training.distributed import passes
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context, supply, train

CACHED = "training.reference_cache=../cache"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("cached"))
    save_tiny_model(folder / "other", seed=1)
    return folder


def opened(job: Path, root: Path, *settings: str) -> Context:
    """A run beside the others in the folder of ``root``, up to what the reference stage reads."""
    context = open_context(job, root, "offline", CACHED, *settings)
    begin(context)
    run_stage(context, 1, "pairs")
    return context


def referred(context: Context) -> dict[str, Any]:
    run_stage(context, 1, "reference")
    return dict(context.run.stage(1, "reference").require().metrics)


def entry(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "cache").iterdir()
    return folder


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a reference pass was computed")

    monkeypatch.setattr(stage.ReferenceScores, "_rows", refuse)


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_with_another_loss_and_seed_computes_no_reference_pass(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(job, tmp_path / "dpo", "loss.preset=dpo")
    train(first, 1)
    assert first.run.stage(1, "reference").require().metrics["reference_from_cache"] is False
    forbid(monkeypatch)
    second = opened(job, tmp_path / "ipo", "loss.preset=ipo", "seed=7")
    train(second, 1)
    metrics = second.run.stage(1, "reference").require().metrics
    assert metrics["reference_from_cache"] is True and metrics["passes"] == {"reference_0": "cache"}
    assert [*examples_with_reference(second, 1)] == [*examples_with_reference(first, 1)]
    killed = opened(job, tmp_path / "killed", "loss.preset=ipo", "seed=8")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StageWriter, "commit", interrupted)
        run_stage(killed, 1, "reference")
    # Both have copies of their own: the cache may go.
    shutil.rmtree(tmp_path / "cache")
    assert next(examples_with_reference(second, 1)).responses[0].references
    # What was taken before the kill is known as taken.
    assert referred(killed)["reference_from_cache"] is True
    assert [*examples_with_reference(killed, 1)] == [*examples_with_reference(first, 1)]


def spoil(folder: Path, *, signed: bool, of: str = "logps") -> None:
    """Other log-probabilities, or entropies; ``signed``: as if they had been stored so."""
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        spoilt: Any = {
            "logps": lambda row: [[x - 0.01 for x in side] for side in row["logps"]],
            "entropy": lambda row: row["entropy"] - 0.01,
        }[of]
        rows = [{**row, of: spoilt(row)} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    if signed:
        told = json.loads((folder / ENTRY).read_text())
        other = ReferenceCache(folder.parent)
        other.store("signed", folder, {})
        told["files"] = json.loads((folder.parent / "signed" / ENTRY).read_text())["files"]
        (folder / ENTRY).write_text(json.dumps(told))
        other.drop("signed")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda folder: spoil(folder, signed=False), "not those that were stored"),
        (lambda folder: spoil(folder, signed=True), r"by 0\.01 nats per token"),
        (lambda folder: (folder / ENTRY).unlink(), "cannot be read"),
        (lambda folder: (folder / ENTRY).write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "shard_00000.parquet").unlink(), "not those that were stored"),
    ],
)
def test_a_damaged_entry_is_told_computed_again_and_replaced(
    job: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, cause: str
) -> None:
    first = opened(job, tmp_path / "a")
    referred(first)
    damage(entry(tmp_path))
    second = opened(job, tmp_path / "b")
    metrics = referred(second)
    assert metrics["reference_from_cache"] is False
    with pytest.raises(RunError, match=cause):
        raise RunError(metrics["cache_refused"]["reference_0"])
    assert "computed again" in caplog.text
    assert [*examples_with_reference(second, 1)] == [*examples_with_reference(first, 1)]
    third = referred(opened(job, tmp_path / "c"))
    assert third["reference_from_cache"] is True and third["cache_refused"] == {}


def test_other_entropies_in_the_cache_are_found(job: Path, tmp_path: Path) -> None:
    settings = ("loss.preset=mallows_theta",)
    first = opened(job, tmp_path / "a", *settings)
    referred(first)
    spoil(entry(tmp_path), signed=True, of="entropy")
    metrics = referred(opened(job, tmp_path / "b", *settings))
    assert metrics["reference_from_cache"] is False and "entropy" in metrics["cache_refused"]["reference_0"]


def test_another_model_dtype_or_other_tokens_are_another_entry(job: Path, tmp_path: Path) -> None:
    # Weights of one size: their content tells them apart.
    sizes = {(job / name / "model.safetensors").stat().st_size for name in ("model", "other")}
    assert len(sizes) == 1 and weights_digest(job / "model") != weights_digest(job / "other")
    copy = tmp_path / "elsewhere"
    shutil.copytree(job / "model", copy)
    assert weights_digest(copy) == weights_digest(job / "model")
    pairs = [Example.pair("a", (1, 2), (3,), (4, 5)), Example.pair("b", (1,), (2, 3), (4, 5))]
    moved = [Example.pair("a", (1,), (2, 3), (4, 5)), Example.pair("b", (1,), (2, 3), (4, 5))]
    assert len({tokens_digest(these) for these in (pairs, moved, pairs[::-1], pairs[:1])}) == 4
    keys = {entry_key(t, m, d, e) for t in "ab" for m in "ab" for d in ("float32", "bfloat16") for e in (True, False)}
    assert len(keys) == 16
    referred(opened(job, tmp_path / "a"))
    metrics = referred(opened(job, tmp_path / "b", "training.dtype=bfloat16"))
    assert metrics["reference_from_cache"] is False and metrics["cache_refused"] == {}


def test_several_references_are_one_pass_each_with_one_model_in_memory(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, Any]] = []

    def watched(path: str, *given: Any, **options: Any) -> Any:
        assert all(model() is None for _, model in loaded), "the model before is still in memory"
        model = load_for_scoring(path, *given, **options)
        loaded.append((Path(path).name, weakref.ref(model)))
        return model

    monkeypatch.setattr(passes, "load_for_scoring", watched)
    settings = ("loss.preset=mrpo", f"training.references=[{job / 'other'}]")
    metrics = referred(opened(job, tmp_path / "a", *settings))
    assert [name for name, _ in loaded] == ["model", "other"] and metrics["reference_from_cache"] is False
    # One of the two is what another loss reads.
    assert referred(opened(job, tmp_path / "b", "loss.preset=dpo"))["reference_from_cache"] is True
    extrapolated = opened(job, tmp_path / "c", "loss.preset=apo_accelerated", f"training.references=[{job / 'other'}]")
    assert referred(extrapolated)["passes"] == {"reference_0": "cache", "reference_1": "cache"}
    assert len((*examples_with_reference(extrapolated, 1),)[0].responses[0].references) == 2


def test_what_was_computed_before_a_kill_is_not_computed_again(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(job, tmp_path / "whole", "training.reference_cache=null")
    referred(whole)
    computed: list[int] = []
    values = FrozenPolicy.values

    def killed_at_the_third(*args: Any, **options: Any) -> Any:
        computed.append(len(args[1]))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return values(*args, **options)

    monkeypatch.setattr(stage, "SHARD", 3)
    monkeypatch.setattr(FrozenPolicy, "values", killed_at_the_third)
    context = opened(job, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, 1, "reference")
    assert not (tmp_path / "cache").exists()
    referred(context)
    assert computed == [3, 3, 2, 2]
    found, expected = ([*examples_with_reference(run, 1)] for run in (context, whole))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours.responses, theirs.responses, strict=True):
            assert one.references[0] == pytest.approx(other.references[0], abs=1e-5)


def test_runs_that_store_and_drop_at_once_leave_whole_entries_alone(tmp_path: Path) -> None:
    place, cache = tmp_path / "place", ReferenceCache(tmp_path / "cache")
    place.mkdir()
    for number in range(3):
        (place / f"shard_{number:05d}.parquet").write_bytes(bytes([number]) * 50_000)
    seen: list[int] = []
    faults: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for _ in range(20):
                cache.store("key", place, {})
                if cache.fetch("key", tmp_path / f"fetched_{name}"):
                    seen.append(len([*(tmp_path / f"fetched_{name}").glob("*.parquet")]))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            faults.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and seen == [3] * 80
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


def test_without_a_cache_nothing_is_written_beside_the_run(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "offline")
    begin(context)
    supply(context, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_cache_that_cannot_be_written_costs_no_run(
    job: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    context = opened(job, tmp_path / "a")
    assert referred(context)["reference_from_cache"] is False and "could not store" in caplog.text
    assert next(examples_with_reference(context, 1)).responses[0].references
