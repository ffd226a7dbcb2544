"""``--help`` comes at once: it loads none of the modules that the commands themselves need."""

import subprocess
import sys

HELP = """
import sys
from flows.__main__ import app
app(["--help"], standalone_mode=False)
heavy = {"pydantic", "yaml", "numpy", "pyarrow", "torch", "transformers", "prefect", "pipeline.config"}
print(sorted(heavy & set(sys.modules)))
"""


def test_help_loads_no_settings_and_no_library_of_the_commands() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "reward-model" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
