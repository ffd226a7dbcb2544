"""Tensors in safetensors files of at most 5 GB: gathered file by file, written side by side, read one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.storage.shards import planned_shards, remove_shards, shards_of

# Files in writing at a time: each holds its tensors in memory.
_WRITERS = 2

Gather = Callable[[Sequence[str]], Mapping[str, Tensor]]


def write_shards(
    file: Path,
    sizes: Mapping[str, int],
    gather: Gather,
    *,
    writes: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors into ``file``, or its shards, in place of what is there.

    A kill may leave some of them: the caller writes into a folder that does not count until it is renamed.

    Args:
        file: for all of them, if they fit.
        sizes: bytes of each tensor, by name.
        gather: returns the tensors of some names, on the CPU; called for one file after the other. If several processes
            hold parts of them, each of these calls this function.
        writes: whether this process writes.
        metadata: of each file.
    """
    if writes:
        remove_shards(file)
    begun: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITERS) as pool:
        for place, names in planned_shards(file, sizes):
            tensors = dict(gather(names))
            if not writes:
                continue
            if len(begun) == _WRITERS:
                # No more are in memory than those in writing, and the next.
                begun.pop(0).result()
            begun.append(pool.submit(save_file, tensors, place, None if metadata is None else dict(metadata)))
        for one in begun:
            one.result()


class ShardReader(Mapping[str, Tensor]):
    """The tensors of some open files, each read when it is asked for."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        """``files``: the open file that holds each tensor."""
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its file's header."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype_name(self, name: str) -> str:
        """The dtype of a tensor as the file's header has it, such as BF16."""
        return str(self._files[name].get_slice(name).get_dtype())


@contextmanager
def opened_shards(file: Path) -> Iterator[ShardReader]:
    """Open ``file`` or its shards.

    Raises:
        OSError: there is none, or one is missing or cannot be read.
        SafetensorError: one is damaged.
    """
    files = shards_of(file)
    if not files:
        raise FileNotFoundError(f"No such file or directory: {file}")
    with opened_files(files) as reader:
        yield reader


@contextmanager
def opened_files(files: Sequence[Path]) -> Iterator[ShardReader]:
    """Open ``files``; of tensors with the same name, the last one counts. Raises as ``opened_shards`` does."""
    with ExitStack() as stack:
        held: dict[str, Any] = {}
        for path in files:
            tensors: Any = stack.enter_context(safe_open(path, framework="pt"))
            held |= dict.fromkeys(tensors.keys(), tensors)
        yield ShardReader(held)
