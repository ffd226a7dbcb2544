"""``prefloop ui``: Prefect's own server and UI on 127.0.0.1."""

import sys

from flows.server import start_watched, stop_watched


def serve_ui(port: int) -> int:
    """Run the server until it is stopped; returns its exit code."""
    print(f"Prefect UI: http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Without it the page asks the default port, whatever port it was served from.
    server = start_watched(command, {"PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api"}, None)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop_watched(server)
