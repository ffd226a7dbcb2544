"""prefloop as users start it, for tests of whole runs."""

import subprocess
import sys


def prefloop(home: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    return subprocess.run(command, env=home, capture_output=True, text=True, timeout=800, check=False)
