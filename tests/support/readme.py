"""README, the pages beside it and those of the folders; their trees, and the commands in their blocks."""

import re
from pathlib import Path

from tests.support.places import ROOT

PARTS = ("configs", "flows", "pipeline", "prefloop", "reward_models")
FILES = [
    ROOT / "README.md",
    *(page for page in sorted(ROOT.glob("*.md")) if page.name != "README.md"),
    *(page for part in PARTS for page in sorted((ROOT / part).rglob("README.md"))),
]
PAGES = {page: page.read_text() for page in FILES}
README = "\n".join(PAGES.values())


def commands(program: str) -> list[str]:
    """The lines of their blocks that begin with ``program``, as they stand there, each once."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(f"{program} ")))


def tree(page: Path, heading: str = "What is where") -> dict[str, str]:
    """Path -> description, from the block under ``heading``; a folder ends with a slash. A path comes once."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for block in re.findall(rf"^## {heading}\n\n```\n(.*?)^```", PAGES[page], re.M | re.S):
        for line in block.splitlines():
            name, _, said = line.strip().partition(" ")
            depth = (len(line) - len(line.lstrip())) // 2
            path = "".join(folders[:depth]) + name
            assert path not in found, path
            found[path] = said.strip()
            if name.endswith("/"):
                folders[depth:] = [name]
    return found


def nearest(file: Path) -> Path:
    """README of the file's folder, or of the nearest folder above it that has one."""
    return next(folder / "README.md" for folder in file.parents if folder / "README.md" in PAGES)


def sources() -> list[Path]:
    """Code, configs and templates, without ``__init__.py`` (its folder has a line) and presets (they have a table)."""
    files = [file for part in PARTS for file in sorted((ROOT / part).rglob("*"))]
    return [
        file
        for file in files
        if file.suffix in (".py", ".yaml", ".jinja")
        and file.name != "__init__.py"
        and file.parent != ROOT / "configs" / "loss"
    ]
