"""The imports of a tree of Python files: who reads whom, directly and through others."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

Graph = Mapping[str, frozenset[str]]


def modules(root: Path, packages: Sequence[str]) -> dict[str, Path]:
    """File of each module under ``packages`` of ``root``, by its dotted name; a package is its ``__init__.py``."""
    found = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path) -> set[str]:
    """Full names of every module that ``file`` imports, in functions too, and of what it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def graph(root: Path, packages: Sequence[str]) -> Graph:
    """Module -> modules of the tree that it imports. ``from a import b`` is an import of ``a.b`` where that is one."""
    files = modules(root, packages)
    edges: dict[str, frozenset[str]] = {}
    for name, file in files.items():
        taken = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                taken |= {other if other in files else node.module for other in full}
        edges[name] = frozenset(taken & files.keys() - {name})
    return edges


def closure(edges: Graph, start: str) -> dict[str, str]:
    """Every module that ``start`` reaches -> the module through which it was reached first."""
    reached: dict[str, str] = {}
    waiting = [start]
    while waiting:
        here = waiting.pop(0)
        for other in sorted(edges[here]):
            if other not in reached and other != start:
                reached[other] = here
                waiting.append(other)
    return reached


def path_to(reached: Mapping[str, str], start: str, end: str) -> str:
    """How ``start`` comes to import ``end``: ``a -> b -> c``."""
    steps = [end]
    while steps[-1] != start:
        steps.append(reached[steps[-1]])
    return " -> ".join(reversed(steps))


def circles(edges: Graph) -> list[str]:
    """Modules that import themselves through others, each with its shortest way round."""
    found = []
    for start in edges:
        reached = closure(edges, start)
        back = [other for other in (start, *reached) if start in edges[other]]
        if back:
            found.append(f"{path_to(reached, start, back[0])} -> {start}")
    return found


def against(edges: Graph, order: Sequence[Sequence[str]]) -> list[str]:
    """Imports from a lower room to a higher one, through others too; ``order`` lists rooms, the highest first.

    A room is a module or a package with all that is in it; rooms of one step may not import each other. Modules in no
    room are unrestricted.
    """
    steps = {room: number for number, rooms in enumerate(order) for room in rooms}

    def place(module: str) -> str | None:
        inside = [room for room in steps if module == room or module.startswith(room + ".")]
        return max(inside, key=len, default=None)

    found = []
    for start in edges:
        here = place(start)
        if here is None:
            continue
        reached = closure(edges, start)
        for other in reached:
            there = place(other)
            if there is not None and there != here and steps[there] <= steps[here]:
                found.append(path_to(reached, start, other))
    return found


def crowded(root: Path, packages: Sequence[str], most: int) -> dict[str, int]:
    """Folders of more than ``most`` entries (files and folders), and how many they have."""
    folders = [folder for name in packages for folder in (root / name, *(root / name).rglob("*")) if folder.is_dir()]
    counts = {
        str(folder.relative_to(root)): sum(entry.name != "__pycache__" for entry in folder.iterdir())
        for folder in folders
        if folder.name != "__pycache__"
    }
    return {folder: count for folder, count in counts.items() if count > most}


def homes(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Modules that define each public name at their top level: functions, classes, constants and type aliases."""
    found: dict[str, list[str]] = {}
    for module, file in files.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for name in _defined(node):
                if not name.startswith("_"):
                    found.setdefault(name, []).append(module)
    return found


def _defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []
