"""Ports of this machine for servers that the run starts. Torch-free."""

import os
import socket
import struct
from pathlib import Path

_LISTENING = "0A"


def free_port() -> int:
    """Return a free port of 127.0.0.1; another process may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Return whether a server can listen on ``port`` of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do, so that a port counts as free right after its last server has ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def is_ours(port: int) -> bool:
    """Return whether the process that listens on ``port`` of 127.0.0.1 is this user's; True if Linux does not say."""
    try:
        rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return True
    # Addresses and ports in hexadecimal, in the machine's order; zeros stand for all addresses.
    loopback = f"{struct.unpack('=I', socket.inet_aton('127.0.0.1'))[0]:08X}"
    places = {f"{address}:{port:04X}" for address in (loopback, "0" * 8)}
    owners = {int(row[7]) for row in rows if row[3] == _LISTENING and row[1] in places}
    return owners <= {os.geteuid()}


def loopback_only() -> dict[str, str]:
    """Return the variables that keep torch's and vLLM's own connections off the network.

    Without them they listen on the address that the machine's name has, and ask for no secret.
    """
    if not Path("/sys/class/net/lo").exists():
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
