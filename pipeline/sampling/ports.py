"""Ports of this machine for servers that the run starts. Torch-free."""

import socket


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
