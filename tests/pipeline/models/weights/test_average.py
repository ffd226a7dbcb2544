"""The running mean of policies that are stored in 16 bits moves as in float32, however small each round's change is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models.policy import load_policy
from pipeline.models.weights.average import average_policies
from pipeline.models.weights.weight_format import WeightFormat
from tests.support.tiny_model import save_tiny_model

NAME = "model.layers.0.mlp.up_proj.weight"
DECAY, RATE, ROUNDS = 0.9, 1e-6, 12


def stored(folder: Path, wide: dict[str, torch.Tensor], *, masters: bool = True) -> Path:
    """A policy as a round leaves it: rounded weights, and perhaps those that they were rounded from."""
    save_tiny_model(folder)
    (folder / "masters").mkdir()
    save_file({n: t.bfloat16() for n, t in wide.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    if masters:
        save_file(wide, folder / "masters" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_after_many_rounds_at_a_tiny_rate_the_mean_is_that_of_float64(tmp_path: Path) -> None:
    wide = load_file(save_tiny_model(tmp_path / "start") / "model.safetensors")
    old = stored(tmp_path / "old", wide, masters=False)
    exact = {name: tensor.bfloat16().double() for name, tensor in wide.items()}
    for round_ in range(ROUNDS):
        wide = {name: tensor + RATE for name, tensor in wide.items()}
        new, out = stored(tmp_path / f"new{round_}", wide), tmp_path / f"mean{round_}"
        average_policies(old, new, DECAY, out)
        exact = {name: DECAY * exact[name] + (1 - DECAY) * wide[name].double() for name in exact}
        old = out
    mean, rounded = load_file(old / "masters" / "model.safetensors"), load_file(old / "model.safetensors")
    for name, tensor in mean.items():
        assert tensor.dtype == torch.float32 and rounded[name].dtype == torch.bfloat16
        assert torch.equal(rounded[name], tensor.bfloat16())
        # A round's part of the mean is 1e-7; float32 is that exact at weights of about 1.
        torch.testing.assert_close(tensor.double(), exact[name], rtol=0, atol=2e-7 * ROUNDS)
    start = load_file(tmp_path / "old" / "model.safetensors")[NAME].float()
    drift = (mean[NAME] - start).double().mean() - (exact[NAME] - start.double()).mean()
    assert abs(float(drift)) < RATE / 100
    model = load_policy(str(old), held=WeightFormat("bfloat16"))
    assert torch.equal(model.state_dict()[NAME], rounded[NAME])


def test_a_mean_in_float32_has_no_masters_and_large_ones_have_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = save_tiny_model(tmp_path / "old", seed=0), save_tiny_model(tmp_path / "new", seed=1)
    monkeypatch.setattr("pipeline.storage.shards.SHARD_BYTES", 100_000)
    average_policies(old, new, 0.25, tmp_path / "out")
    files = [*(tmp_path / "out").glob("*.safetensors")]
    # No file is larger than asked for, but one tensor is never cut.
    alone = max(tensor.numel() * 4 for tensor in load_file(new / "model.safetensors").values())
    assert len(files) > 2 and all(file.stat().st_size < max(alone, 100_000) + 20_000 for file in files)
    assert not (tmp_path / "out" / "masters").exists()
    a, b, mean = (load_policy(str(folder)).state_dict() for folder in (old, new, tmp_path / "out"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.25 * a[name] + 0.75 * b[name])
