"""``python -m tests.fuzz --inputs 100000``: that many inputs to all readers; exit code 1 if any reader failed.

Printed are the inputs tried, those refused with a message, the failures with an input of each, and the slowest input.
"""

import argparse
import faulthandler
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.fuzz.readers import Tried, readers, try_inputs
from tests.support.tiny_model import tiny_tokenizer

# Few enough that what hypothesis remembers of inputs stays small.
AT_ONCE = 500
HANGS_AFTER = 600.0
MOST_MEMORY = 6 << 30


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs, over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for inputs that failed")
    options = parser.parse_args()
    threading.Thread(target=_guard_memory, daemon=True).start()
    tried, started = Tried(), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        tiny_tokenizer().save_pretrained(f"{place}/model")
        for name, (reader, share) in readers(Path(place) / "model").items():
            count = options.inputs * share // 100
            if options.only is not None:
                count = options.inputs if name == options.only else 0
            # A hang inside of C code ends the process, and says where.
            for begin in range(0, count, AT_ONCE):
                faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
                at_once = min(AT_ONCE, count - begin)
                try_inputs(name, reader, at_once, options.seed + begin, Path(place), options.keep, tried)
                faulthandler.cancel_dump_traceback_later()
            print(f"{name}: {count} inputs, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(report(tried, time.monotonic() - started))
    return 1 if tried.failures else 0


def _guard_memory() -> None:
    """What is read must not fill the memory of the machine: end before it does, and say where."""
    while psutil.Process().memory_info().rss < MOST_MEMORY:
        time.sleep(0.2)
    faulthandler.dump_traceback(all_threads=True)
    print(f"FAILED: more than {MOST_MEMORY >> 30} GiB of memory", file=sys.stderr, flush=True)
    os._exit(1)


def report(tried: Tried, seconds: float) -> str:
    """The lines that are printed at the end."""
    lines = [
        f"inputs tried: {tried.inputs} ({tried.refused} refused with a message) in {seconds:.0f} s",
        f"failures: {sum(tried.failures.values())}",
        f"slowest: {tried.slowest[0]:.2f} s of CPU time ({tried.slowest[1]})",
    ]
    for failure, count in tried.failures.items():
        lines.append(f"{count} times: {failure}\n  input: {tried.kept[failure]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
