"""Who listens on this machine, and where."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import VllmSampler
from pipeline.sampling import ports
from pipeline.sampling.ports import loopback_only
from pipeline.sampling.vllm_engine import engine_environment

# Every process is rank 0 of 1, as an engine's is.
LISTENERS = """
import json, sys
import psutil, torch
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
print(json.dumps([one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"]))
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_port_is_ours_if_our_user_listens_on_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, dualstack_ipv6=":" in address) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        assert ports.is_ours(port)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert not ports.is_ours(port)
    monkeypatch.undo()
    assert not ports.is_ours(port)


@pytest.mark.whole
def test_an_engine_s_own_connections_are_not_on_the_network(tmp_path: Path) -> None:
    assert loopback_only() == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    environment = {**os.environ, **engine_environment(VllmSampler())}
    command = [sys.executable, "-c", LISTENERS, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"127.0.0.1"}
