"""FSDP2: several passes a step are reduced once, or after each, to the gradient of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import Optimisation
from pipeline.training.distributed.launch import reduced_once
from tests.support.places import ROOT
from tests.support.reduced_steps import step

# Four layers and the root; each of two processes makes four passes.
UNITS, PASSES = 5, 4


@pytest.mark.parametrize(
    ("sync", "gradients", "card", "once"),
    [
        ("auto", 20 * 10**9, 80 * 10**9, True),
        ("auto", 32 * 10**9, 80 * 10**9, False),
        ("step", 32 * 10**9, 80 * 10**9, True),
        ("pass", 10**6, 80 * 10**9, False),
    ],
)
def test_whole_sums_take_a_quarter_of_the_card_at_most_unless_asked(
    sync: str, gradients: int, card: int, once: bool
) -> None:
    settings = Optimisation.model_validate({"gradient_sync": sync})
    assert reduced_once(settings, gradients, card) is once


@pytest.mark.whole
def test_two_processes_reduce_once_a_step_and_have_the_gradient_of_one(tmp_path: Path) -> None:
    places = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests/support/reduced_steps.py")
    started = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=400) for process in started] == [0, 0]
    counted = json.loads((tmp_path / "facts.json").read_text())
    assert counted == {"auto": UNITS, "step": UNITS, "pass": UNITS * PASSES}
    assert step(tmp_path / "alone.safetensors") == 0
    alone = load_file(tmp_path / "alone.safetensors")
    gradients = [name for name in alone if name.endswith(".exp_avg")]
    assert max(float(alone[name].abs().max()) for name in gradients) > 1e-4
    for kind in counted:
        cut = load_file(tmp_path / f"{kind}.safetensors")
        assert cut.keys() == alone.keys()
        for name in gradients:
            torch.testing.assert_close(cut[name], alone[name], rtol=1e-4, atol=1e-7)
