"""``prefloop ui``: Prefect's own server and UI on 127.0.0.1."""

import sys

from flows.prefect_api.server import lasting_server


def serve_ui(port: int) -> int:
    """Run the server until it is stopped; returns its exit code. Raises ``UserError`` if the port is taken."""
    try:
        with lasting_server(port) as server:
            print(f"Prefect UI: http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr)
            return server.wait()
    except KeyboardInterrupt:
        return 0
