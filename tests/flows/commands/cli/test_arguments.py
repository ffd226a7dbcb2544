"""``--help`` comes at once: it loads none of the modules that the commands themselves need."""

import subprocess
import sys

from typer.testing import CliRunner

from flows.__main__ import app

HELP = """
import sys
from flows.__main__ import app
app(["--help"], standalone_mode=False)
heavy = {"pydantic", "yaml", "numpy", "pyarrow", "torch", "transformers", "prefect", "pipeline.config"}
print(sorted(heavy & set(sys.modules)))
"""


def test_every_command_is_said_in_a_line_of_eighty_letters() -> None:
    said = CliRunner().invoke(app, ["--help"], terminal_width=80, env={"COLUMNS": "80"}).output
    lines = said.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(app.registered_commands)
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


def test_help_loads_no_settings_and_no_library_of_the_commands() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "reward-model" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
