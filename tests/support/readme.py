"""README and the pages of the folders, and the commands that they tell."""

import re

from tests.support.places import ROOT

FOLDERS = (".", "configs", "flows", "pipeline", "pipeline/losses", "reward_models")
PAGES = {ROOT / folder / "README.md": (ROOT / folder / "README.md").read_text() for folder in FOLDERS}
README = "\n".join(PAGES.values())


def commands(program: str) -> list[str]:
    """The lines of their blocks that begin with ``program``, as they stand there, each once."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(f"{program} ")))
