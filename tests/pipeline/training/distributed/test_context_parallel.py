"""Processes that compute each row together have the loss and the gradient of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.places import ROOT

pytestmark = pytest.mark.whole
SCRIPT = ROOT / "tests" / "support" / "context_gradient.py"


def gradients(processes: int, out: Path) -> dict[str, torch.Tensor]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(SCRIPT), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("processes", [2, pytest.param(4, id="two rows of two")])
def test_every_kind_of_loss_has_the_gradient_of_one_process(processes: int, tmp_path: Path) -> None:
    ours, expected = gradients(processes, tmp_path / "ours"), gradients(1, tmp_path / "one")
    assert ours.keys() == expected.keys()
    assert max(float(values.abs().max()) for values in expected.values()) > 0.1
    for name, values in expected.items():
        torch.testing.assert_close(ours[name], values, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
