"""Token ids of many prompts in a temporary file, so that memory does not grow with their lengths. Torch-free."""

import tempfile
from array import array
from pathlib import Path

import numpy as np


class TokenFile:
    """Rows of token ids, added once and read in any order; 8 bytes of memory a row."""

    def __init__(self, folder: Path) -> None:
        """The file is in ``folder``, has no name there, and is gone once it is closed."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``
        self._ends = array("q", [0])
        self._read: np.ndarray[tuple[int], np.dtype[np.int32]] | None = None

    def add(self, ids: tuple[int, ...]) -> None:
        """Add a row. Raises ``OSError`` if the disk is full."""
        self._file.write(array("i", ids).tobytes())
        self._ends.append(self._ends[-1] + len(ids))
        self._read = None

    def close(self) -> None:
        """Remove the file."""
        self._read = None
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> tuple[int, ...]:
        start, end = self._ends[row], self._ends[row + 1]
        if start == end:
            return ()
        if self._read is None:
            self._file.flush()
            # A plain array: a slice of a memory map's own type costs several times as much.
            self._read = np.asarray(np.memmap(self._file, np.int32, mode="r"))
        return tuple(self._read[start:end].tolist())
