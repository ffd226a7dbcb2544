"""The cells of the training benchmark, and how one is measured: both sides in turn, each run in its own process."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tests.benchmarks.isolated import measure_apart

SIDE, STREAMED = "tests.benchmarks.preference_steps", "tests.benchmarks.streamed_steps"
Facts = dict[str, Any]
Dtype = Literal["float32", "bfloat16"]
Group = Literal["dialogue", "grid", "vocabulary", "growth"]

DIALOGUE = (126.0, 46.0)
PROMPTS, RESPONSES = (32, 128, 512, 2048), (32, 128, 512)
# The micro-batch that most examples of the other side's documentation use.
USUAL = 8
CLIMB = (1, 2, 4, 8, 16, 32)
GLOBAL_BATCH = 32
# Tokens of a measurement, each distinct one counted once.
TOKENS: Mapping[str, int] = {"dialogue": 28_000, "grid": 8_000, "vocabulary": 7_000}
QUICK_TOKENS: Mapping[str, int] = {"dialogue": 20_000, "grid": 6_000, "vocabulary": 3_000}
LENGTH_OF_GROWTH = (8.0, 8.0)
# Few pairs are gone through again until there are this many visits: a second of steps would be mostly noise.
VISITS_OF_GROWTH = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of pairs for one model; lengths are means, in tokens."""

    group: Group
    shape: str
    dtype: Dtype
    prompt: float
    response: float
    pairs: int
    batch_size: int
    micro_batches: tuple[int, ...] = CLIMB
    ours: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{self.group} {self.prompt:g}+{self.response:g} {self.dtype}"

    def job(self, repeat: int, **more: Any) -> Facts:
        """What the child is asked for; each repeat draws other pairs."""
        return {**asdict(self), "ours": dict(self.ours), "seed": repeat, **more}


def pairs_for(prompt: float, response: float, tokens: float) -> tuple[int, int]:
    """(pairs, global batch) that make about ``tokens``; at least two steps, of fewer pairs where these are long.

    One step is not all that training holds: the optimiser's state comes with its end.
    """
    wanted = tokens / (prompt + 2 * response)
    batch = next((size for size in (GLOBAL_BATCH, 16, 8, 4) if wanted >= 1.5 * size), 2)
    return batch * max(2, round(wanted / batch)), batch


def cells(
    shape: str, dtypes: Sequence[Dtype], ours: Mapping[str, Any], *, quick: bool, scale: float = 1.0
) -> list[Cell]:
    """All cells but those of growth, grid and vocabulary in the first of ``dtypes``; ``scale`` times as many pairs."""
    tokens, climb = (QUICK_TOKENS, (2, USUAL)) if quick else (TOKENS, CLIMB)

    def cell(group: Group, shape: str, dtype: Dtype, prompt: float, response: float) -> Cell:
        sizes = pairs_for(prompt, response, scale * tokens[group])
        return Cell(group, shape, dtype, prompt, response, *sizes, climb, ours)

    spots = [(32, 128)] if quick else [(p, r) for p in PROMPTS for r in RESPONSES]
    found = [cell("dialogue", shape, dtype, *DIALOGUE) for dtype in dtypes]
    found += [cell("grid", shape, dtypes[0], *spot) for spot in spots]
    return [*found, cell("vocabulary", "wide-vocabulary", dtypes[0], *DIALOGUE)]


def measure_cell(cell: Cell, repeats: int, limit: float) -> Facts:
    """Medians of both sides and their ratios.

    The first time micro-batches are tried from small to large until they only get slower; then, in turn, our side,
    the fastest and, outside the grid, the usual one.
    """
    ours: list[Facts] = []
    theirs: dict[int, list[Facts]] = {}

    def run(side: str, repeat: int, micro: int = 0) -> Facts:
        facts = measure_apart(SIDE, cell.job(repeat, side=side, micro_batch=micro), limit, ours=side == "ours")
        _tell(cell, side, micro, facts)
        return facts

    for repeat in range(repeats):
        ours.append(run("ours", repeat))
        for micro in cell.micro_batches if repeat == 0 else _worth(cell, theirs):
            if micro > cell.batch_size or (repeat == 0 and _only_slower(cell, theirs)):
                continue
            theirs.setdefault(micro, []).append(run("theirs", repeat, micro))
    return _facts(cell, ours, theirs)


def measure_growth(cell: Cell, counts: Sequence[int], repeats: int, limit: float) -> Facts:
    """Our side alone, streaming from parquet, with few and with many pairs: seconds a pair and memory.

    The time ratio is the larger of two: of seconds within steps a visit, and of all seconds a pair, from opening the
    parquet files on; the latter alone would flatter, since what does not depend on the pairs is shared by more.
    """
    runs: dict[int, list[Facts]] = {count: [] for count in counts}
    for repeat in range(repeats):
        for count in counts:
            epochs = max(1, VISITS_OF_GROWTH // count)
            facts = measure_apart(STREAMED, cell.job(repeat, pairs=count, epochs=epochs), limit)
            _tell(cell, f"ours, {count} pairs", 0, facts)
            runs[count].append(facts)
    found = {str(count): _median(of_count) for count, of_count in runs.items()}
    few, many = found[str(counts[0])], found[str(counts[-1])]
    both = "failed" not in few and "failed" not in many
    ratios = {
        "time_ratio": max(many[name] / few[name] for name in ("seconds_a_visit", "seconds_a_pair")) if both else None,
        "kib_per_pair": 1024 * (many["memory_mib"] - few["memory_mib"]) / (counts[-1] - counts[0]) if both else None,
    }
    return {"name": cell.name, **asdict(cell), "ours": dict(cell.ours), "counts": found, **ratios}


def _facts(cell: Cell, ours: list[Facts], theirs: dict[int, list[Facts]]) -> Facts:
    mine, others = _median(ours), {micro: _median(runs) for micro, runs in theirs.items()}
    fine = {micro: facts for micro, facts in others.items() if "failed" not in facts}
    best = max(fine, key=lambda micro: float(fine[micro]["pairs_per_second"]), default=None)
    found: Facts = {"name": cell.name, **asdict(cell), "settings": dict(cell.ours), "ours": mine, "best": best}
    found["theirs"] = {str(micro): facts for micro, facts in others.items()}
    if best is None or "failed" in mine:
        return found
    found["ratio_best"] = mine["pairs_per_second"] / fine[best]["pairs_per_second"]
    found["memory_ratio_best"] = mine["memory_mib"] / fine[best]["memory_mib"]
    if USUAL in fine:
        found["ratio_usual"] = mine["pairs_per_second"] / fine[USUAL]["pairs_per_second"]
        found["memory_ratio_usual"] = mine["memory_mib"] / fine[USUAL]["memory_mib"]
    return found


def _median(runs: list[Facts]) -> Facts:
    fine = [facts for facts in runs if "failed" not in facts]
    if not fine:
        return {"failed": runs[0]["failed"] if runs else "not run"}
    numbers = [name for name, value in fine[0].items() if isinstance(value, float)]
    return {name: statistics.median(facts[name] for facts in fine) for name in numbers} | {"runs": fine}


def _speeds(theirs: dict[int, list[Facts]]) -> dict[int, float]:
    return {micro: float(runs[0].get("pairs_per_second", 0.0)) for micro, runs in theirs.items()}


def _worth(cell: Cell, theirs: dict[int, list[Facts]]) -> list[int]:
    """The fastest and, where it is asked for, the usual one."""
    speeds = {micro: speed for micro, speed in _speeds(theirs).items() if speed > 0}
    if not speeds:
        return []
    usual = {USUAL} & speeds.keys() if cell.group != "grid" else set()
    return sorted({max(speeds, key=lambda micro: speeds[micro]), *usual})


def _only_slower(cell: Cell, theirs: dict[int, list[Facts]]) -> bool:
    """Whether the last micro-batch fell behind the best or failed, and none is needed beyond it."""
    speeds = _speeds(theirs)
    last = max(speeds, default=0)
    enough = last >= USUAL or (cell.group == "grid" and len(speeds) > 1)
    return enough and speeds[last] < 0.9 * max(speeds.values())


def _tell(cell: Cell, side: str, micro: int, facts: Facts) -> None:
    told = facts.get("failed") or f"{facts['pairs_per_second']:.2f} pairs/s, {facts['memory_mib']:.0f} MiB"
    print(f"{cell.name}: {side}{f' micro-batch {micro}' if micro else ''}: {told}", file=sys.stderr, flush=True)
