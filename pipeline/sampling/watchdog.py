"""End a process when its parent ends, even if the parent is killed with -9.

``python -m pipeline.sampling.watchdog PARENT COMMAND...`` runs a command that does not watch its parent.
"""

import os
import signal
import subprocess
import sys
import threading
import time

_WATCH_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """Kill this process, and the group that it leads, within a second of the end of process ``parent``.

    A thread checks the parent's id: Linux's signal on the parent's death (PDEATHSIG) would already
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
    """Run the command in the arguments until it or the parent ends; pass SIGTERM on and wait for it to end."""
    end_with_parent(int(sys.argv[1]))
    with subprocess.Popen(sys.argv[2:]) as command:
        signal.signal(signal.SIGTERM, lambda *_: command.terminate())
        sys.exit(command.wait())


if __name__ == "__main__":
    main()
