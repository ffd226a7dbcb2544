"""Ports of this machine for servers of our own. Torch-free."""

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on; another process may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a server can listen on ``port`` of 127.0.0.1."""
    with socket.socket() as probe:
        # As servers do, so that a port counts as free whose last server has just ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
