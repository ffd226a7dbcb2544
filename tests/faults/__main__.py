"""``make faults``: kills, faults and hostile inputs by the hundred; how many were tried, and what was lost.

About an hour and a half on two cores, where nothing else runs on them.
"""

import argparse
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fire import ROOT

FAULTS = {
    "kills at each commit point, interrupts, cancellations": [
        "tests/flows/loop/test_loop_stopped.py",
        "tests/pipeline/storage/test_run_folder.py",
        "tests/pipeline/training/test_checkpoint.py",
    ],
    "kills amid labels, and of caches' writers": [
        "tests/flows/stages/labels/test_labels.py",
        "tests/reward_models/answers/test_cache.py",
    ],
    "zombies and cancellations in Prefect, its server killed": ["tests/flows/prefect_api/test_states.py"],
    "children that die or hang": [
        "tests/flows/workers/test_child.py",
        "tests/flows/workers/test_local.py",
        "tests/flows/workers/test_sampler_pool.py",
        "tests/flows/workers/test_followers.py",
    ],
    "judges that fail": ["tests/reward_models/judge/test_judge.py"],
    "files that are damaged, missing or edited": [
        "tests/flows/commands/test_verify.py",
        "tests/flows/stages/test_unfinished.py",
        "tests/flows/run_folder/test_redo.py",
    ],
    "full disks, read-only folders, vanished mounts": ["tests/flows/planning/test_full_disk.py"],
    "two writers, stale leases": ["tests/flows/run_folder/test_lease.py"],
    "numbers that are not finite, weights that are others, drift": ["tests/flows/stages/training/test_numbers.py"],
}


@dataclass(frozen=True)
class Outcome:
    """One line of the summary."""

    tried: int
    what: str
    lost: str


def kills(count: int, folder: Path) -> Outcome:
    """The quickstart's job under ``count`` kills."""
    done = _python(
        "tests.faults.campaign", "--kills", str(count), "--kills-a-run", "40", "--folder", str(folder / "kills")
    )
    found = re.findall(r"^(\d+) kills in (\d+) runs; lost: (.*)$", done, re.M)
    number, runs, lost = found[-1] if found else (0, 0, "the campaign did not end")
    return Outcome(int(number), f"kills in {runs} runs of the quickstart's size", lost)


def inputs(count: int, folder: Path) -> Outcome:
    """That many hostile inputs to all readers."""
    done = _python("tests.fuzz", "--inputs", str(count), "--keep", str(folder / "fuzz"))
    tried, failures = re.search(r"^inputs tried: (\d+)", done, re.M), re.search(r"^failures: (\d+)", done, re.M)
    lost = f"{failures[1]} inputs failed" if failures and failures[1] != "0" else "nothing"
    return Outcome(
        int(tried[1]) if tried else 0, "hostile inputs to the readers", lost if tried else "fuzz did not end"
    )


def faults(what: str, files: list[str], folder: Path) -> Outcome:
    """The tests in ``files``, a fault each or more."""
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    _python("pytest", "-o", "timeout=1800", f"--junitxml={report}", *files)
    if not report.exists():
        return Outcome(0, what, "the tests did not end")
    suites = [suite.attrib for suite in ET.parse(report).getroot()]
    tried = sum(int(suite["tests"]) - int(suite["skipped"]) for suite in suites)
    failed = sum(int(suite["failures"]) + int(suite["errors"]) for suite in suites)
    return Outcome(tried, what, f"{failed} tests failed" if failed else "nothing")


def _python(module: str, *arguments: str) -> str:
    """Run a module, showing what it prints as it comes; returns it."""
    said: list[str] = []
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return "".join(said)


def main() -> int:
    """Try everything, then print a line for each kind."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as beside:
        # Reading keeps a core busy; the tests mostly wait.
        read = beside.submit(inputs, options.inputs, folder)
        outcomes = [faults(what, files, folder) for what, files in FAULTS.items()]
        outcomes.append(read.result())
    outcomes.append(kills(options.kills, folder))
    print(f"\n{'tried':>8}  what, and what was lost")
    for outcome in outcomes:
        print(f"{outcome.tried:8d}  {outcome.what}: {outcome.lost}")
    whole = all(outcome.lost == "nothing" and outcome.tried > 0 for outcome in outcomes)
    print(f"lost: {'nothing' if whole else 'see above'}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
