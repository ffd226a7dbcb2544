"""A run under fire: started, killed here and there, started again, and in the end compared with one left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.faults.results import is_shard, results, seeds_of_shards
from tests.support.places import ROOT

INJECTION = Path(__file__).parent / "injection"
Role = Literal["parent", "sampler", "trainer", "server", "script"]
FILES = ("write", "fsync", "rename", "renamed", "remove")
# Where each process can be told to die, how often that place may be passed before, and the longest delay there.
POINTS: dict[Role, dict[str, tuple[int, float]]] = {
    "parent": dict.fromkeys(FILES, (10, 0.0)),
    "trainer": {**dict.fromkeys(FILES, (10, 0.0)), "step": (24, 0.0)},
    "sampler": {"sampled": (200, 0.0), "swap": (1, 1.0)},
    "server": {},
    # Of a program of a test's own, which runs one stage.
    "script": {**dict.fromkeys(FILES, (10, 0.0)), "judge": (100, 0.0)},
}
SHARES: dict[Role, float] = {"parent": 0.35, "trainer": 0.3, "sampler": 0.2, "server": 0.15}
# For all processes of a run to be gone after its first one is.
GONE_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: of which process, at which place or (``point`` is "time") when it has been there for ``seconds``.

    Attributes:
        path: what the path of the file must hold that is written, renamed or removed at that place.
        after: how often the place is passed before.
        delay: seconds from the place to the kill.
    """

    role: Role
    point: str
    after: int = 0
    delay: float = 0.0
    seconds: float = 0.0
    path: str = ""


@dataclass(slots=True)
class Losses:
    """What a run under fire lost; all of it must be empty or zero."""

    shards_twice: list[str] = field(default_factory=list)
    sampled_again: int = 0
    orphans: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unfinished: str = ""

    @property
    def nothing(self) -> bool:
        """Whether nothing was lost."""
        return not any(asdict(self).values())


def prefloop_run(arguments: list[str], run: Path) -> list[str]:
    """The command that runs ``prefloop run`` with ``arguments`` in the folder ``run``."""
    return [sys.executable, "-m", "flows", "run", *arguments, "--run-dir", str(run)]


def draw_kill(lots: random.Random, longest: float) -> Kill:
    """A kill by lot: half of them at a place, half at a time of up to ``longest`` seconds."""
    role = lots.choices(list(SHARES), list(SHARES.values()))[0]
    if POINTS[role] and lots.random() < 0.5:
        point = lots.choice(list(POINTS[role]))
        most, delay = POINTS[role][point]
        return Kill(role, point, lots.randrange(most), lots.uniform(0, delay))
    return Kill(role, "time", seconds=lots.uniform(0, longest))


class Fire:
    """One run folder and the processes that write it, each of them marked by the folder's name in its environment."""

    def __init__(self, run: Path, command: list[str], environment: Mapping[str, str]) -> None:
        """``command``: starts the run, or goes on with it."""
        self.run = run
        self.done: list[Kill] = []
        self.lost = Losses()
        self.endings: Counter[int] = Counter()
        self.starts = 0
        self._command = command
        self._ledger = run.with_name(f"{run.name}.ledger.jsonl")
        self._orders = run.with_name(f"{run.name}.orders.json")
        self._output = run.with_name(f"{run.name}.output")
        self._environment = {
            **environment,
            "PYTHONPATH": os.pathsep.join([str(INJECTION), str(ROOT)]),
            "FAULTS_RUN": str(run),
            "FAULTS_LEDGER": str(self._ledger),
            "FAULTS_ORDERS": str(self._orders),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._ordered: dict[str, Any] | None = None

    def shoot(self, kill: Kill, patience: float) -> bool:
        """Have one process killed; False if the run was over before.

        A place that is not reached within ``patience`` seconds is given up, and the process is killed there and then.
        """
        number = len(self.done) + 1
        given_up, due = time.monotonic() + patience, None
        while True:
            process = self._running(kill, number)
            # Asked first: what was killed has said so before it ended.
            ended = process.poll()
            if self._fell(number):
                break
            if ended == 0:
                self._over()
                return False
            if ended is not None:
                # What an earlier kill has brought about; the next start gets this one's order.
                self._over()
                continue
            now = time.monotonic()
            if kill.point == "time" and due is None and self._alive(kill.role):
                due = now + kill.seconds
            if now > (given_up if due is None else due):
                self._order({})
                role = self._kill_now(kill.role)
                kill = Kill(role, "time", seconds=kill.seconds or patience)
                break
            time.sleep(0.1)
        self.done.append(kill)
        if kill.role in ("parent", "script"):
            self._running().wait()
            self._over()
        return True

    def finish(self, tries: int = 3) -> None:
        """Let the run go on, undisturbed, to its end; after a few ``tries`` it is lost."""
        for _ in range(tries):
            if self._running().wait() == 0:
                self._over()
                return
            self._over()
        self.lost.unfinished = self._output.read_text(errors="replace")[-2000:]

    def compare(self, expected: dict[str, str]) -> None:
        """Hold the finished run against ``results`` of an undisturbed one, and count what was done twice."""
        found = results(self.run)
        self.lost.different = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        self.lost.left_over = sorted(
            str(path.relative_to(self.run))
            for path in self.run.rglob("*")
            if path.suffix in (".partial", ".tmp") or path.name == "checkpoints"
        )
        written = Counter(line["path"] for line in self._lines("renamed") if is_shard(line["path"]))
        self.lost.shards_twice = sorted(path for path, times in written.items() if times > 1)
        self.lost.sampled_again = self._sampled_again()

    def repeated(self) -> int:
        """Prompts that were sampled more than once: those of shards that were under way when a kill came."""
        return sum(times - 1 for times in Counter(line["seed"] for line in self._lines("sampled")).values())

    def _sampled_again(self) -> int:
        """Prompts that were sampled although their shard was there already."""
        complete: set[int] = set()
        again, prompts = 0, seeds_of_shards(self.run)
        for line in self._lines():
            if line["event"] == "renamed" and is_shard(line["path"]):
                complete |= prompts.get(line["path"], set())
            elif line["event"] == "sampled":
                again += line["seed"] in complete
        return again

    def _running(self, kill: Kill | None = None, number: int = 0) -> "subprocess.Popen[bytes]":
        """The run's first process; it, or one that runs already, has the order to see to ``kill``."""
        order = {} if kill is None or kill.point == "time" else {"number": number, **asdict(kill)}
        if order != self._ordered:
            self._order(order)
        if self._process is None:
            self.starts += 1
            with self._output.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
        return self._process

    def _over(self) -> None:
        """Collect the first process, which has ended, and see that no other is left."""
        assert self._process is not None
        self.endings[self._process.wait()] += 1
        self._process = None
        deadline = time.monotonic() + GONE_SECONDS
        while (left := list(self._family())) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            self.lost.orphans.append(" ".join(process.info["cmdline"] or ()))
            with suppress(psutil.NoSuchProcess):
                process.kill()
        said = self._output.read_text(errors="replace")
        if "Traceback" in said and not self.lost.tracebacks:
            self.lost.tracebacks.append(said[said.index("Traceback") :][:4000])

    def _kill_now(self, role: Role) -> Role:
        """Kill the process of that role, or where there is none the parent; returns whom."""
        found = self._alive(role)
        with suppress(ProcessLookupError):
            if found:
                os.kill(found[-1], signal.SIGKILL)
                return role
        assert self._process is not None
        self._process.kill()
        return "parent"

    def _alive(self, role: Role) -> list[int]:
        """Ids of the processes of that role, the newest last."""
        alive = {process.pid for process in self._family()}
        return [line["pid"] for line in self._lines("started") if line["role"] == role and line["pid"] in alive]

    def _family(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline", "status"]):
            try:
                marked = process.environ().get("FAULTS_RUN") == str(self.run)
            except (psutil.Error, OSError):
                continue
            if marked and process.info["status"] != psutil.STATUS_ZOMBIE:
                yield process

    def _fell(self, number: int) -> bool:
        return any(line["number"] == number for line in self._lines("killed"))

    def _order(self, order: dict[str, Any]) -> None:
        self._ordered = order
        scratch = self._orders.with_suffix(".new")
        scratch.write_text(json.dumps(order))
        scratch.replace(self._orders)

    def _lines(self, event: str | None = None) -> list[dict[str, Any]]:
        if not self._ledger.exists():
            return []
        lines = [json.loads(line) for line in self._ledger.read_text().splitlines()]
        return [line for line in lines if event is None or line["event"] == event]
