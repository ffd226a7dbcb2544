"""Where the checkout and the data beside it are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# Real data that is handed out with the project's tasks; tests that read it are skipped where it is not.
DATA = ROOT.parent / "shared" / "data"
