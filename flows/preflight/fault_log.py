"""Faults in a run's data: all of them in a file, counts by cause, and a check against the limits."""

import glob
import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from pipeline.config import Limits
from pipeline.config.data.columns import Columns
from pipeline.config.data.limits import FATES
from pipeline.data.faults import Cause
from pipeline.errors import UserError

_SHOWN = 5
_ROWS_NAMED = 3
_NO_COLUMN = re.compile(r"no column '(\w+)'")


@dataclass
class _Alike:
    """Rows of one file with the same message: the first of them, and how many there are."""

    rows: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, number: int) -> None:
        """Count the row ``number``."""
        self.count += 1
        if len(self.rows) < _ROWS_NAMED:
            self.rows.append(number)

    def place(self, file: str) -> str:
        """For messages: ``a.csv, row 3``, or ``a.csv, rows 1, 2, 3 ... (2,000 rows)``."""
        named = ", ".join(map(str, self.rows))
        more = f" ... ({self.count:,} rows)" if self.count > len(self.rows) else ""
        return f"{file}, row{'s' if self.count > 1 else ''} {named}{more}"


_First = dict[tuple[str, str], _Alike]


@dataclass
class _Tally:
    """Counts for one source: rows, faults by cause, and each cause's first messages by (file, message)."""

    rows: int = 0
    faults: Counter[Cause] = field(default_factory=Counter)
    first: dict[Cause, _First] = field(default_factory=lambda: defaultdict(dict))

    def add(self, file: str, number: int, cause: Cause, said: str) -> None:
        """Count a fault."""
        self.faults[cause] += 1
        first = self.first[cause]
        if (file, said) in first or len(first) < _SHOWN:
            first.setdefault((file, said), _Alike()).add(number)

    def shown(self, cause: Cause, most: int) -> list[str]:
        """Return the first ``most`` messages, those of the same words as one."""
        return [f"{alike.place(file)}: {said}" for (file, said), alike in [*self.first[cause].items()][:most]]


def _remove_left(file: Path) -> None:
    """Remove the unfinished files of checks that were killed."""
    for left in file.parent.glob(f"{glob.escape(file.name)}.*.tmp"):
        number = left.name.removeprefix(f"{file.name}.").removesuffix(".tmp")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            left.unlink(missing_ok=True)


class FaultLog:
    """Collects faults row by row, then accepts or refuses the data. A context manager.

    The file has one JSON object a line: ``source`` (prompts, pairs, pairs.of.0 or held_out), ``file``, ``row``,
    ``cause``, ``said``. It appears, complete, after the last row, and only if there is a fault.

    Attributes:
        tallies: by source, in order of appearance.
        account: how many rows are trained on, in lines.
    """

    def __init__(self, limits: Limits, file: Path | None = None) -> None:
        """``file``: where to write the faults; None: nowhere."""
        self.tallies: dict[str, _Tally] = {}
        self.account: list[str] = []
        self._limits = limits
        self._file = file
        self._scratch: IO[str] | None = None

    def __enter__(self) -> "FaultLog":
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.unlink(missing_ok=True)
            _remove_left(self._file)
            self._scratch = self._partial(self._file).open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._file is None or self._scratch is None:
            return
        self._scratch.close()
        if error is None and self.found:
            self._partial(self._file).replace(self._file)
        else:
            self._partial(self._file).unlink(missing_ok=True)

    @property
    def found(self) -> bool:
        """True if any row has a fault."""
        return any(tally.faults for tally in self.tallies.values())

    def row(self, source: str) -> None:
        """Count one more row of ``source``."""
        self.tallies.setdefault(source, _Tally()).rows += 1

    def fault(self, source: str, file: str, number: int, cause: Cause, said: str) -> None:
        """Record a fault of a row that is already counted."""
        self.tallies[source].add(file, number, cause, said)
        if self._scratch is not None:
            line = {"source": source, "file": file, "row": number, "cause": cause, "said": said}
            self._scratch.write(json.dumps(line, ensure_ascii=False) + "\n")

    def lines(self) -> list[str]:
        """Return the counts, one line per source and cause, and what becomes of such rows."""
        return [
            f"  {source}: {cause}: {_share(count, tally.rows)}, {self._fate(cause)}"
            for source, tally in self.tallies.items()
            for cause, count in tally.faults.most_common()
        ]

    def check(self) -> None:
        """Raise ``UserError`` if a cause exceeds its limit, with the first rows of each such cause."""
        above = [
            (source, cause, tally)
            for source, tally in self.tallies.items()
            for cause, count in tally.faults.items()
            if count > self._limits.share(cause) * tally.rows
        ]
        if not above:
            return
        each, lines = max(1, _SHOWN // len(above)), []
        for source, cause, tally in above[:_SHOWN]:
            count = tally.faults[cause]
            lines.append(
                f"{source}: {cause}: {_share(count, tally.rows)}; limits.{cause} allows {self._limits.share(cause):.4g}"
            )
            lines += [f"  {line[:300]}" for line in tally.shown(cause, each)]
            lines += _mapping(source, tally.first[cause])
        lines = lines[:8] + ([f"{len(above) - _SHOWN} more causes"] if len(above) > _SHOWN else [])
        where = "" if self._file is None else f"\nall of them: {self._file}"
        raise UserError("the data has faults above its limits\n" + "\n".join(lines) + where)

    def _fate(self, cause: Cause) -> str:
        if cause in self._limits.dropped:
            return "dropped (limits)"
        return f"limit {self._limits.share(cause):.4g}: {FATES[cause]}"

    @staticmethod
    def _partial(file: Path) -> Path:
        # Two checks at the same time must not write to the same one.
        return file.with_name(f"{file.name}.{os.getpid()}.tmp")


def _mapping(source: str, first: _First) -> list[str]:
    """Return the settings that name columns which the rows lack."""
    missing = [found[1] for _, said in first if (found := _NO_COLUMN.match(said))]
    settings = [f"{source}.columns.{name}=NAME" for name in dict.fromkeys(missing) if name in Columns.model_fields]
    return [f"  say which column it is: {' '.join(settings)}"] if settings and source != "held_out" else []


def _share(count: int, rows: int) -> str:
    return f"{count} of {rows} rows ({100 * count / rows:.3g} %)"
