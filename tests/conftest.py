"""The environment that every test runs in: the one that the command line sets up, and an empty Prefect home."""

import os
import tempfile

from flows.environment import prepare_environment

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefect-home-"))
prepare_environment()
