"""The environment that every test runs in: the one that the command line sets up, and an empty Prefect home."""

import os
import signal
import tempfile

from hypothesis import HealthCheck, settings

from flows.prefect_api.environment import prepare_environment

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefect-home-"))
prepare_environment()
# A machine that is held up for a moment fails no test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background hands this on, and the tests of Ctrl-C would test nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
