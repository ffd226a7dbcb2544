"""The environment that every test runs in: the one that the command line sets up, and an empty Prefect home."""

import os
import signal
import tempfile

from flows.environment import prepare_environment

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefect-home-"))
prepare_environment()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background hands this on, and the tests of Ctrl-C would test nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
