"""No process outlives the one that started it, not even when that one is killed with -9.

``python -m pipeline.sampling.watchdog PARENT COMMAND...`` runs a command that does not watch by itself.
"""

import os
import signal
import subprocess
import sys
import threading
import time

_WATCH_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """Kill this process, and the group that it leads, within a second after process ``parent`` is gone.

    A thread asks for the parent's id: a signal on the parent's death (Linux's PDEATHSIG) would already
    come when the thread that started this process ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main() -> None:
    """Run the command of the arguments until it or the parent ends; SIGTERM is passed on, and its end awaited."""
    end_with_parent(int(sys.argv[1]))
    with subprocess.Popen(sys.argv[2:]) as command:
        signal.signal(signal.SIGTERM, lambda *_: command.terminate())
        sys.exit(command.wait())


if __name__ == "__main__":
    main()
