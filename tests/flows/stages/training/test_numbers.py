"""Numbers that go wrong stop a run: the fault is planted and named, its rows and the last good weights are kept."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.atomic import write_json
from pipeline.storage.manifest import MANIFEST, read_manifest
from pipeline.storage.rows import read_group_file, read_preference_file, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed import passes
from pipeline.types import Response
from tests.support.finished_run import finished
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, sealed_anew, supply


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def supplied(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pairs up to what round 1 trains on."""
    context = open_context(job, tmp_path_factory.mktemp("supplied"), "offline")
    begin(context)
    supply(context, 1)
    return context.run.root


def opened(job: Path, tmp_path: Path, supplied: Path, *settings: str) -> Context:
    return open_context(job, tmp_path / "run", "offline", *settings, base=supplied)


def trained_rows(context: Context) -> set[str]:
    return {row.id for row in read_preference_rows(context.run.stage(1, "pairs").folder)}


def test_weights_that_overflow_are_not_kept_though_loss_and_gradient_were_finite(
    job: Path, tmp_path: Path, supplied: Path
) -> None:
    context = opened(job, tmp_path, supplied, "training.learning_rate=1e39", "training.max_steps=1")
    with pytest.raises(RunError, match="the weights after it are not") as error:
        run_stage(context, 1, "policy")
    kept = context.run.stage(1, "policy").partial / "offending.parquet"
    rows = list(read_preference_file(kept))
    assert str(kept) in str(error.value) and len(rows) == 4 and {row.id for row in rows} <= trained_rows(context)
    assert not context.run.stage(1, "policy").folder.exists() and not [*kept.parent.glob("*.safetensors")]


def test_weights_that_overflow_do_not_replace_the_last_good_checkpoint(
    job: Path, tmp_path: Path, supplied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.steps import Steps

    take = Steps.take

    def spoils(steps: Steps, step: int, check_start: bool) -> Any:
        report = take(steps, step, check_start)
        if step == 1:
            next(iter(steps.trained.parameters.values())).data.view(-1)[0] = math.inf
        return report

    monkeypatch.setattr(Steps, "take", spoils)
    context = opened(job, tmp_path, supplied, "training.checkpoint_every=1")
    with pytest.raises(RunError, match=r"step 2 of 2: .*(?s:.*)the last good ones are in .*step_000001"):
        run_stage(context, 1, "policy")
    (place,) = (context.run.stage(1, "policy").partial / "checkpoints").glob("step_*")
    assert place.name == "step_000001"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(place / "weights.safetensors").values())
    monkeypatch.undo()
    assert run_stage(context, 1, "policy")


def test_a_reference_that_is_not_the_policy_is_found_at_step_0_with_the_rows(
    job: Path, tmp_path: Path, supplied: Path
) -> None:
    context = opened(job, tmp_path, supplied)
    stage = context.run.stage(1, "reference")
    file = stage.folder / "reference_0" / "shard_00000.parquet"
    table = pq.read_table(file)
    stored = table["logps"].to_pylist()
    shifted = [[[logp - 0.5 for logp in logps] for logps in one] for one in stored]
    column = pa.array(shifted, table.schema.field("logps").type)
    pq.write_table(table.set_column(1, table.schema.field("logps"), column), file)
    sealed_anew(context, 1, "reference")
    with pytest.raises(RunError, match="policy and reference are the same model, yet") as error:
        run_stage(context, 1, "policy")
    kept = context.run.stage(1, "policy").partial / "offending.parquet"
    assert str(kept) in str(error.value)
    assert next(read_preference_file(kept)).id in trained_rows(context)


def test_reference_log_probabilities_that_are_no_numbers_are_not_kept(
    job: Path, tmp_path: Path, supplied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opened(job, tmp_path, supplied)
    shutil.rmtree(context.run.stage(1, "reference").folder)
    load = passes.load_for_scoring

    def damaged(*given: Any, **named: Any) -> Any:
        model = load(*given, **named)
        model.get_input_embeddings().weight.data[:, 0] = math.nan
        return model

    monkeypatch.setattr(passes, "load_for_scoring", damaged)
    with pytest.raises(RunError, match="are not finite; the row is in") as error:
        run_stage(context, 1, "reference")
    kept = context.run.root / "offending" / "round_001_reference.parquet"
    assert str(kept) in str(error.value)
    (row,) = read_preference_file(kept)
    assert row.id in trained_rows(context) and row.id in str(error.value)
    assert not [*context.run.stage(1, "reference").partial.rglob("shard_*.parquet")]
    monkeypatch.undo()
    assert run_stage(context, 1, "reference")


def test_a_model_whose_weights_are_no_numbers_is_refused_at_the_start(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    next(iter(weights.values())).view(-1)[:] = math.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    context = open_context(job, tmp_path / "run", "offline", f"policy.path={tmp_path / 'model'}")
    run_stage(context, 0, "data")
    with pytest.raises(RunError, match="probe tokens are not finite"):
        run_stage(context, 0, "policy")


class BrokenSampler(InventedResponses):
    """Its log-probabilities of the third prompt's responses are no numbers."""

    def sample(
        self, policy: Path, probe: Path, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        for number, group in enumerate(super().sample(policy, probe, requests, settings)):
            logps = -1.0 if number != 2 else math.nan
            yield tuple(Response(r.text, r.token_ids, (logps,) * len(r.token_ids), r.finish_reason) for r in group)


def test_a_sampler_that_gives_no_numbers_stops_the_run_and_its_shard_is_not_kept(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", "shard_size=2")
    begin(context)
    workers: Any = BrokenSampler(context.policy_path(0))
    with pytest.raises(RunError, match=r"1 of 2 prompts of shard_00001\.parquet are not finite") as error:
        run_stage(context, 1, "samples", workers)
    kept = context.run.root / "offending" / "round_001_samples.parquet"
    assert str(kept) in str(error.value) and len(list(read_group_file(kept))) == 1
    assert [file.name for file in context.run.stage(1, "samples").partial.glob("*.parquet")] == ["shard_00000.parquet"]
    honest: Any = InventedResponses(context.policy_path(0))
    assert run_stage(context, 1, "samples", honest)


def test_a_sampler_that_has_drifted_from_the_trainer_stops_the_run(job: Path, tmp_path: Path) -> None:
    whole = finished(job, tmp_path / "run", "rounds=1")
    shutil.rmtree(whole.run.stage(1, "evaluation").folder)
    strict = open_context(job, whole.run.root, "iterative", "rounds=1", "evaluation.max_gap=0.5")
    with pytest.raises(RunError, match=r"differ by .* nats per token .*evaluation\.max_gap: 0\.5") as error:
        run_stage(strict, 1, "evaluation")
    kept = strict.run.root / "offending" / "round_001_evaluation.parquet"
    assert str(kept) in str(error.value) and 0 < len(list(read_group_file(kept))) <= 16
    assert strict.run.stage(1, "policy").manifest() is not None
    # A setting that changes no result: the same run goes on under another limit.
    wide = open_context(job, whole.run.root, "iterative", "rounds=1", "evaluation.max_gap=100")
    assert run_stage(wide, 1, "evaluation")


def test_the_limit_follows_the_coarser_precision(job: Path, tmp_path: Path) -> None:
    from flows.stages.evaluation import _gap_limit

    whole = finished(job, tmp_path / "run", "rounds=1")
    manifest = whole.run.root / "round_001/evaluation_samples" / MANIFEST
    assert _gap_limit(whole, 1) is None
    told = read_manifest(manifest)
    told.metrics["sampled"] |= {"weight_handshake": {"dtype": "float32"}}  # type: ignore[operator]
    write_json(manifest, vars(told.sealed()))
    in_16_bits = open_context(job, whole.run.root, "iterative", "rounds=1", "training.dtype=bfloat16")
    assert (_gap_limit(whole, 1), _gap_limit(in_16_bits, 1)) == (0.01, 0.3)
    assert RunFolder(whole.run.root).stage(1, "evaluation_samples").manifest() is not None
