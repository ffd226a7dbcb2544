"""Data-parallel training over processes gives what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.support.places import ROOT

pytestmark = pytest.mark.whole

SCRIPT = ROOT / "tests" / "support" / "ddp_gradient.py"


def trained(processes: int, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with safe_open(out, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_two_processes_are_one(tmp_path: Path) -> None:
    alone, facts = trained(1, tmp_path / "one.safetensors")
    shared, same = trained(2, tmp_path / "two.safetensors")
    assert (facts["processes"], same["processes"]) == ("1", "2")
    assert [float(x) for x in same["losses"].split()] == pytest.approx(
        [float(x) for x in facts["losses"].split()], abs=1e-5
    )
    assert shared.keys() == alone.keys()
    for name, expected in alone.items():
        # Adam divides a gradient by its own size, and so what rounding makes of one that is nearly 0. Scores of images
        # are hundreds of nats: their largest gradients are near 10.
        apart = 5e-5 if name.startswith(("steps.", "images.")) else 1e-6
        torch.testing.assert_close(shared[name], expected, rtol=1e-5, atol=apart)
