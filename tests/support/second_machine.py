"""Two "machines" of one process each on the loopback interface, started as on two hosts."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.places import ROOT

SETTINGS = ("rounds=1", "sampler.kind=transformers", "training.learning_rate=5e-5")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accelerate_file(file: Path, port: int, **changes: Any) -> Path:
    """An accelerate config of two machines; FSDP2."""
    plain = {
        "distributed_type": "FSDP",
        "num_machines": 2,
        "num_processes": 2,
        "use_cpu": True,
        "main_process_ip": "127.0.0.1",
        "main_process_port": port,
        "mixed_precision": "no",
        "fsdp_config": {"fsdp_version": 2},
        **changes,
    }
    file.write_text(yaml.safe_dump({name: value for name, value in plain.items() if value is not None}))
    return file


def start(job: Path, run: Path, accelerate: Path, rank: int, *settings: str) -> subprocess.Popen[str]:
    """``prefloop run`` as on the machine of this rank."""
    command = [sys.executable, "-m", "flows", "run", str(job / "offline.yaml"), *SETTINGS, *settings]
    command += [f"accelerate={accelerate}", "--run-dir", str(run), "--machine-rank", str(rank)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=job, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
