"""``prefloop ui``: Prefect's own server and UI on 127.0.0.1."""

import os
import subprocess
import sys


def serve_ui(port: int) -> int:
    """Run the server until it is stopped; returns its exit code."""
    print(f"Prefect UI: http://127.0.0.1:{port}  (Ctrl-C ends it)", file=sys.stderr)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Without it the page asks the default port, whatever port it was served from.
    environment = {**os.environ, "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api"}
    try:
        return subprocess.run(command, check=False, env=environment).returncode
    except KeyboardInterrupt:
        return 0
