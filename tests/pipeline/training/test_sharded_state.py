"""Checkpoints and optimiser state in several files: the same bits after a kill, and in the next round."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Optimisation
from pipeline.errors import RunError
from pipeline.models.weights.shard_files import opened_shards
from pipeline.storage.shards import shards_of
from pipeline.training.step_log import StepReport
from tests.support.tiny_training import dpo, pairs_with_reference, tiny_llama, trained

SETTINGS = Optimisation(batch_size=4, micro_batch_size=2, learning_rate=1e-3, epochs=2.0, checkpoint_every=3)
SHARD = 20_000


class KilledError(Exception):
    pass


def killed(report: StepReport) -> None:
    if report.step == 8:
        raise KilledError


def fit(policy: Any, **options: Any) -> list[float]:
    examples = pairs_with_reference(tiny_llama(), 18)
    return [step.loss for step in trained(policy, examples, dpo(), SETTINGS, seed=5, **options).history]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.shards.SHARD_BYTES", SHARD)


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def read(file: Path) -> dict[str, torch.Tensor]:
    with opened_shards(file) as tensors:
        return dict(tensors)


def test_a_killed_run_goes_on_bit_by_bit_from_a_checkpoint_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_llama()
    expected = fit(whole, optimiser_to=tmp_path / "whole.safetensors")
    assert shards_of(tmp_path / "whole.safetensors") == [tmp_path / "whole.safetensors"]
    monkeypatch.setattr("pipeline.storage.shards.SHARD_BYTES", SHARD)
    kept, resumed, state = tmp_path / "kept", tiny_llama(), tmp_path / "state.safetensors"
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=kept, on_step=killed)
    place = kept / "step_000006"
    for name in ("weights", "optimiser"):
        files = shards_of(place / f"{name}.safetensors")
        assert len(files) > 2 and not (place / f"{name}.safetensors").exists()
        assert all(file.stat().st_size < 2 * SHARD for file in files)
    assert fit(resumed, checkpoints=kept, optimiser_to=state) == expected
    assert_same(resumed.state_dict(), whole.state_dict())
    assert len(shards_of(state)) > 2
    assert_same(read(state), read(tmp_path / "whole.safetensors"))


def test_the_next_round_goes_on_from_a_state_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    fit(tiny_llama(), optimiser_to=one)
    monkeypatch.setattr("pipeline.storage.shards.SHARD_BYTES", SHARD)
    fit(tiny_llama(), optimiser_to=several)
    assert len(shards_of(several)) > 2
    first, second, fresh = tiny_llama(seed=1), tiny_llama(seed=1), tiny_llama(seed=1)
    assert fit(first, optimiser_from=one) == fit(second, optimiser_from=several)
    assert_same(second.state_dict(), first.state_dict())
    fit(fresh)
    assert not torch.equal(fresh.state_dict()["lm_head.weight"], first.state_dict()["lm_head.weight"])


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", ["weights", "optimiser"])
def test_a_checkpoint_that_lacks_one_of_its_files_is_not_resumed(name: str, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        fit(tiny_llama(), checkpoints=tmp_path, on_step=killed)
    lost = shards_of(tmp_path / "step_000006" / f"{name}.safetensors")[1]
    lost.unlink()
    with pytest.raises(RunError, match=f"not a readable checkpoint: .*{lost.name}"):
        fit(tiny_llama(), checkpoints=tmp_path)
