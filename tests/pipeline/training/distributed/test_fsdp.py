"""Models cut over two processes (FSDP2, ZeRO) are trained to what one process gives, and their files are whole."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.places import ROOT
from tests.support.sharded_steps import AUXILIARY, RUNS, steps
from tests.support.tiny_training import tiny_llama

pytestmark = pytest.mark.whole

SCRIPT = ROOT / "tests" / "support" / "sharded_steps.py"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
CUTS = ["fsdp2", *(pytest.param(cut, marks=needs_deepspeed) for cut in ("zero1", "zero2", "zero2_offload"))]


def launch(folder: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    words = [process.communicate(timeout=400)[1] for process in started]
    return [subprocess.CompletedProcess([], p.returncode, "", said) for p, said in zip(started, words, strict=True)]


@pytest.fixture(scope="module", params=CUTS)
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    cut: str = request.param
    folder = tmp_path_factory.mktemp(cut)
    main, other = launch(folder, cut)
    assert main.returncode == 9, main.stderr[-3000:]
    assert "onnection" in other.stderr and other.returncode != 0
    return cut, folder


def assert_same(ours: Path, theirs: Path, apart: float) -> None:
    mine, others = load_file(ours), load_file(theirs)
    assert mine.keys() == others.keys()
    for name, expected in others.items():
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=apart, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", [name for name in RUNS if name != "resumed"])
def test_cut_weights_are_trained_as_whole_ones(name: str, sharded: tuple[str, Path], tmp_path: Path) -> None:
    cut, folder = sharded
    if name in AUXILIARY and cut != "fsdp2":
        pytest.skip("DeepSpeed trains the policy alone")
    steps(name, tmp_path)
    start = dict(tiny_llama(tied=RUNS[name][1]).named_parameters())
    trained = load_file(folder / f"{name}.safetensors")
    assert any((trained[n] - start[n]).abs().max() > 1e-4 for n in trained if n in start) or RUNS[name][2]
    assert_same(folder / f"{name}.safetensors", tmp_path / f"{name}.safetensors", 1e-6)
    assert_same(folder / f"{name}.optimiser.safetensors", tmp_path / f"{name}.optimiser.safetensors", 1e-5)
    if name in AUXILIARY:
        heads = f"{name}.heads/heads.safetensors"
        assert_same(folder / heads, tmp_path / heads, 1e-5)


def test_a_killed_run_goes_on_cut_bit_by_bit_and_whole_to_rounding(sharded: tuple[str, Path], tmp_path: Path) -> None:
    cut, folder = sharded
    assert [place.name for place in (folder / "kept").iterdir()] == ["step_000002"]
    shutil.copytree(folder / "kept", tmp_path / "kept")
    for process in launch(folder, cut, "again"):
        assert process.returncode == 0, process.stderr[-3000:]
    assert_same(folder / "resumed.safetensors", folder / "whole.safetensors", 0.0)
    steps("resumed", tmp_path, checkpoints=tmp_path / "kept")
    assert_same(tmp_path / "resumed.safetensors", folder / "whole.safetensors", 1e-6)


def test_each_process_holds_its_share_of_everything(tmp_path: Path) -> None:
    for world in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command += [str(ROOT / "tests" / "support" / "sharded_bytes.py"), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, *both = (json.loads((tmp_path / f"bytes_{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    for loss, parts in alone.items():
        for part, size in parts.items():
            shares = [one[loss][part] for one in both]
            # A slice has whole rows, and vectors of one number have one owner.
            assert sum(shares) == size and max(shares) <= 0.55 * size, (loss, part, shares, size)
