"""Ctrl-C and SIGTERM in a command's first seconds, while its modules are being loaded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

# Loaded by the interpreter at its start: the signal comes when a certain module is asked for.
SITE = """
import os, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"] and "prefloop" in sys.modules:
            os.kill(os.getpid(), int(os.environ["INTERRUPT_WITH"]))
        return None

sys.meta_path.insert(0, Interrupting())
"""
GOES_ON = "prefloop: interrupted; the same command goes on from the last complete shard"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "module", "said"),
    [
        ("run", "typer", "prefloop: interrupted"),
        ("run", "pipeline.config.files", GOES_ON),
        ("run", "flows.commands.run", GOES_ON),
        ("sweep", "flows.commands.sweep", GOES_ON),
        ("reward-model", "flows.commands.reward_model", GOES_ON.replace("complete shard", "checkpoint")),
    ],
)
def test_a_command_that_is_interrupted_while_it_loads_says_so(
    tmp_path: Path, command: str, module: str, said: str, how: signal.Signals
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "INTERRUPT_AT": module, "INTERRUPT_WITH": str(int(how))}
    words = [sys.executable, "-m", "prefloop", command, "quickstart"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.splitlines()) == (130, [said])
    assert not (tmp_path / "runs").exists()
