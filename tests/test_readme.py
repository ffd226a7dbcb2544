"""The README's tree, commands and files are those of the checkout."""

import re
from pathlib import Path

from typer.testing import CliRunner

from flows.__main__ import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_source_file_has_its_line_in_the_tree() -> None:
    tree = README[README.index("## What is where") :]
    for part in ("pipeline", "pipeline/config", "pipeline/losses", "reward_models", "flows", "flows/stages", "configs"):
        for file in sorted((ROOT / part).iterdir()):
            if file.suffix in (".py", ".yaml", ".jinja") and file.name != "__init__.py":
                assert re.search(rf"^\s*{re.escape(file.name)}\s+\S+", tree, re.M), f"{part}/{file.name}"


def test_the_tree_names_nothing_that_is_not_there() -> None:
    tree = README[README.index("## What is where") :]
    names = {file.name for file in ROOT.rglob("*") if ".venv" not in file.parts}
    for name in re.findall(r"^\s*([\w.-]+\.(?:py|yaml|jinja|txt|toml))\s{2,}", tree, re.M):
        assert name in names, name


def test_every_command_is_in_the_table_and_the_other_way_round() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert set(re.findall(r"^\| `prefloop (\w+)", README, re.M)) == commands


def test_every_option_of_the_table_exists() -> None:
    for command, rest in re.findall(r"^\| `prefloop (\w+)([^`]*)`", README, re.M):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[\w-]+", rest):
            assert option in re.sub(r"\x1b\[[0-9;]*m", "", shown), (command, option)


def test_commands_of_the_text_name_files_that_exist() -> None:
    for file in re.findall(r"configs/[\w.-]+\.yaml", README):
        assert (ROOT / file).is_file(), file
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", README)) <= targets | {"a", "the"}
