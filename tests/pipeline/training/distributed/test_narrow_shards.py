"""FSDP2 in bfloat16: weights are gathered in 16 bits, and the losses are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.narrow_steps import losses
from tests.support.places import ROOT

pytestmark = pytest.mark.whole


def test_weights_are_gathered_in_16_bits_and_the_losses_stay(tmp_path: Path) -> None:
    places = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests/support/narrow_steps.py")
    started = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=400) for process in started] == [0, 0]
    cut, whole = json.loads((tmp_path / "facts.json").read_text()), losses()
    assert cut["dtypes"] == ["bfloat16"] and whole["dtypes"] == ["float32"]
    assert len(cut["losses"]) == 4 and cut["losses"][-1] < cut["losses"][0] - 0.05
    assert cut["losses"] == pytest.approx(whole["losses"], abs=5e-3)
