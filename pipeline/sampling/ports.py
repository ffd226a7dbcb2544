"""Ports of this machine for servers that the run starts. Torch-free."""

import os
import socket
import struct
from pathlib import Path

_LISTENING = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOOPBACK = socket.inet_aton("127.0.0.1")
# Where a listener gets connections to 127.0.0.1: there, on all addresses, and on all of both families.
_REACHED_BY_LOOPBACK = (_LOOPBACK, bytes(4), bytes(16), bytes(10) + b"\xff\xff" + _LOOPBACK)


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
    """Return whether what listens on ``port`` of 127.0.0.1 is all this user's; True if Linux does not say."""
    try:
        rows = [row.split() for table in _TABLES if table.exists() for row in table.read_text("ascii").splitlines()[1:]]
    except OSError:
        return True
    if not any(table.exists() for table in _TABLES):
        return True
    places = {f"{_as_listed(address)}:{port:04X}" for address in _REACHED_BY_LOOPBACK}
    owners = {int(row[7]) for row in rows if row[3] == _LISTENING and row[1] in places}
    return owners == {os.geteuid()}


def _as_listed(packed: bytes) -> str:
    """Return an address as the tables write it: in hexadecimal, each 32 bits in the machine's order."""
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))


def loopback_only() -> dict[str, str]:
    """Return the variables that keep torch's and vLLM's own connections off the network.

    Without them they listen on the address that the machine's name has, and ask for no secret.
    """
    if not Path("/sys/class/net/lo").exists():
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
