"""Calls of Prefect's API from a background thread: no stage waits for the server or fails with it."""

import contextlib
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.types.counts import number_of

_Call = Callable[[SyncPrefectClient], None]

EVERY_SECONDS = 3.0
# What a busy server needs at a run's end, when all that is left to send is due at once.
_CLOSE_SECONDS = 60.0
# Prefect's own default: a call given up earlier is work that a busy server does in vain.
_REQUEST_SECONDS = 60.0
# If the server does not answer, the oldest calls are dropped.
MAX_WAITING = 100

logger = logging.getLogger("prefect.prefloop")


class Outbox:
    """A context manager; on exit it waits for unsent calls, so that what people look at is there when the run ends.

    It waits at most ``_CLOSE_SECONDS``, and not for a server that is gone; then it logs how many calls are missing.
    A call that fails is tried once more and then dropped; the first failure in a row is logged.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Call] = deque(maxlen=MAX_WAITING)
        # Made when nothing else waits: the last progress of stages, which matters less than results and events.
        self._later: deque[_Call] = deque(maxlen=MAX_WAITING)
        self._ticking: list[_Call] = []
        self._wake = threading.Event()
        self._over = False
        self._failing = False
        # Nobody listens at the server's address. A busy server fails too, but the next call may arrive.
        self._gone = False
        # Calls after the end that did not arrive, and the one under way.
        self._missing = self._under_way = 0
        # The thread needs the context, which holds the server's address.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="outbox", daemon=True)

    def __enter__(self) -> "Outbox":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)
        missing = self._missing + self._under_way + len(self._waiting) + len(self._later)
        if missing:
            logger.warning(
                "Prefect's UI lacks %s of this run: its server did not take them in time; the run folder has them",
                number_of(missing, "last update"),
            )

    def put(self, call: _Call) -> None:
        """Make ``call`` after the calls before it."""
        self._waiting.append(call)
        self._wake.set()

    @contextlib.contextmanager
    def ticking(self, call: _Call) -> Iterator[None]:
        """Make ``call`` every ``EVERY_SECONDS`` while the block runs, and once after it, when nothing else waits."""
        self._ticking.append(call)
        try:
            yield
        finally:
            self._ticking.remove(call)
            self._later.append(call)
            self._wake.set()

    def _run(self) -> None:
        # Settings that differ from the flow's make Prefect create a separate client for this thread.
        settings = {"timeout": _REQUEST_SECONDS}
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            get_client(httpx_settings=settings, sync_client=True) as client,
        ):
            ticked = time.monotonic()
            while True:
                self._wake.wait(EVERY_SECONDS)
                self._wake.clear()
                # Read first: what was put before the end is made before it.
                over = self._over
                while (queue := self._waiting or self._later) and not (self._over and self._gone):
                    self._make(queue.popleft(), client)
                if over:
                    return
                if time.monotonic() - ticked >= EVERY_SECONDS:
                    ticked = time.monotonic()
                    for call in () if self._over else [*self._ticking]:
                        self._make(call, client)

    def _make(self, call: _Call, client: SyncPrefectClient) -> None:
        self._under_way = 1
        try:
            call(client)
        except (httpx.HTTPError, PrefectException) as error:
            if not self._failing:
                logger.warning("Prefect's server does not accept data for its UI: %s; the run goes on", error)
            self._failing, self._gone = True, isinstance(error, httpx.ConnectError)
            self._missing += self._over
        except Exception:
            logger.warning("data for Prefect's UI could not be made; the run goes on", exc_info=True)
        else:
            self._failing = self._gone = False
        self._under_way = 0
