"""prefloop as users start it, for tests of whole runs."""

import subprocess
import sys
from pathlib import Path


def prefloop(home: dict[str, str], *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``folder``: where it is started, and what relative paths are relative to."""
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True, timeout=2400, check=False)
