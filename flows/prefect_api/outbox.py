"""Calls of Prefect's API from a thread of its own: no stage waits for the server, and none fails with it."""

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

_Call = Callable[[SyncPrefectClient], None]

EVERY_SECONDS = 3.0
_CLOSE_SECONDS = 30.0
_REQUEST_SECONDS = 10.0
# Of a server that does not answer, the oldest calls are given up.
MAX_WAITING = 100

logger = logging.getLogger("prefect.prefloop")


class Outbox:
    """A context manager; leaving it waits at most ``CLOSE_SECONDS`` for what is still to be sent.

    A call that fails is given up after one more try; the first time that happens in a row is logged.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Call] = deque(maxlen=MAX_WAITING)
        self._ticking: list[_Call] = []
        self._wake = threading.Event()
        self._over = False
        self._failing = False
        # The server's address, which belongs to the context, goes with the thread.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="outbox", daemon=True)

    def __enter__(self) -> "Outbox":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def put(self, call: _Call) -> None:
        """Make ``call`` as soon as those before it are made."""
        self._waiting.append(call)
        self._wake.set()

    @contextlib.contextmanager
    def ticking(self, call: _Call) -> Iterator[None]:
        """Make ``call`` every ``EVERY_SECONDS`` while the block runs, and once after it."""
        self._ticking.append(call)
        try:
            yield
        finally:
            self._ticking.remove(call)
            self.put(call)

    def _run(self) -> None:
        # The thread's own client: with other settings than the flow's, it is not the one that the flow uses.
        settings = {"timeout": _REQUEST_SECONDS}
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            get_client(httpx_settings=settings, sync_client=True) as client,
        ):
            ticked = time.monotonic()
            while True:
                self._wake.wait(EVERY_SECONDS)
                self._wake.clear()
                # At the end a server that fails gets no more tries.
                while self._waiting and not (self._over and self._failing):
                    self._make(self._waiting.popleft(), client)
                if self._over:
                    return
                if time.monotonic() - ticked >= EVERY_SECONDS:
                    ticked = time.monotonic()
                    for call in [*self._ticking]:
                        self._make(call, client)

    def _make(self, call: _Call, client: SyncPrefectClient) -> None:
        try:
            call(client)
        except (httpx.HTTPError, PrefectException) as error:
            if not self._failing:
                logger.warning("Prefect's server does not take what its UI is to show: %s; the run goes on", error)
            self._failing = True
        except Exception:
            logger.warning("what Prefect's UI is to show could not be made; the run goes on", exc_info=True)
        else:
            self._failing = False
