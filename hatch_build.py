"""The wheel's one import name: in it, everything is under ``prefloop``, and imports name it there.

A checkout has ``pipeline``, ``reward_models``, ``flows`` and ``configs`` at the top; in site-packages these names would
collide with anybody's. ``pyproject.toml`` moves the folders, and this hook rewrites the import statements. Nothing else
may name a module of ours: code takes names from ``__name__`` and ``__module__``, and a build with such a string fails.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOME = "prefloop"
MOVED = ("pipeline", "reward_models", "flows")
_OURS = re.compile(rf"({'|'.join(MOVED)})(\.\w+)+(:\w+)?")


class OneNameHook(BuildHookInterface[Any]):
    """Replaces each Python file of the wheel by its text with rewritten imports."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the rewritten files into a temporary folder. An editable installation keeps the checkout's names."""
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = Path(mkdtemp(prefix="prefloop-wheel-"))
        # A list first: files that the wheel is forced to include are no longer found.
        for file in [*self.build_config.builder.recurse_included_files()]:
            if not file.distribution_path.endswith(".py"):
                continue
            text = Path(file.path).read_text(encoding="utf-8")
            written = self._folder / file.distribution_path
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(rewritten(text, file.distribution_path), encoding="utf-8")
            build_data["force_include"][str(written)] = file.distribution_path

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        if self.target_name == "wheel" and version != "editable":
            shutil.rmtree(self._folder)


def rewritten(text: str, name: str) -> str:
    """Return a module's ``text`` with ``prefloop.`` before every import of ours; lines keep their numbers.

    Raises ``ValueError`` with ``name`` and line for what no prefix makes right: ``import pipeline.x`` without ``as``,
    which binds ``pipeline``, and a string that is a module's name.
    """
    tree = ast.parse(text, name)
    lines = text.encode("utf-8").splitlines(keepends=True)
    # From the end, so that earlier positions stay right.
    for line, column in sorted(_positions(tree, lines, name), reverse=True):
        there = lines[line - 1]
        lines[line - 1] = there[:column] + f"{HOME}.".encode() + there[column:]
    return b"".join(lines).decode("utf-8")


def _positions(tree: ast.Module, lines: list[bytes], name: str) -> Iterator[tuple[int, int]]:
    """Yield line and column (in bytes) of every name of ours in an import statement."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), level=0) if _is_ours(module):
                start = node.col_offset + len(b"from ")
                if not lines[node.lineno - 1][start:].startswith(module.encode()):
                    raise ValueError(f"{name}, line {node.lineno}: write 'from {module} import' on one line")
                yield node.lineno, start
            case ast.Import(names=names):
                for alias in names:
                    if not _is_ours(alias.name):
                        continue
                    if alias.asname is None:
                        raise ValueError(f"{name}, line {node.lineno}: 'import {alias.name}' needs 'as' in a wheel")
                    yield alias.lineno, alias.col_offset
            case ast.Constant(value=str(value)) if _OURS.fullmatch(value):
                raise ValueError(f"{name}, line {node.lineno}: {value!r} names a module; take it from __name__")


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in MOVED
