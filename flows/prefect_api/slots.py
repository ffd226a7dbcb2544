"""Slots of Prefect's global concurrency limits, which several runs share.

A slot is a lease that this process renews: that of a process which was killed comes back by itself.
"""

import contextvars
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists

from flows.prefect_api.access import prefect_home
from pipeline.errors import RunError, UserError

# Seconds after which the slot of a dead process comes back, and between two signs of life.
LEASE_SECONDS = 90.0
_RENEW_SECONDS = 20.0
# Prefect's server proposes a wait that grows with the number of those that wait.
_LONGEST_WAIT = 10.0
_REQUEST_SECONDS = 30.0
_LOOK_SECONDS = 0.5

Say = Callable[[str], None]


class SharedSlots:
    """The limits that one run names, as a context manager; leaving it ends whoever waits for a slot.

    Threads of the run share a slot: it is given back when the last of them is done.
    """

    def __init__(self, limits: Mapping[str, str | None], freed: Callable[[str], None]) -> None:
        """``limits``: names of Prefect's limits by resource; ``freed`` is called before a resource is given back."""
        self._over = threading.Event()
        self._slots = {
            resource: _Slot(f"resources.{resource}", name, self._over, partial(freed, resource))
            for resource, name in limits.items()
            if name is not None
        }

    def __enter__(self) -> "SharedSlots":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    @contextmanager
    def held(self, resources: Sequence[str], say: Say, alive: Callable[[], None]) -> Iterator[None]:
        """Hold a slot of each resource that has a limit; wait for one after the other, in the order given.

        ``say`` is told of waiting; ``alive`` is called while it waits, and may raise.

        Raises:
            UserError: the limit has no slots at all.
            RunError: the run ends meanwhile.
        """
        with ExitStack() as stack:
            for resource in resources:
                if resource in self._slots:
                    stack.enter_context(self._slots[resource].held(say, alive))
            yield


class _Slot:
    def __init__(self, field: str, limit: str, over: threading.Event, freed: Callable[[], None]) -> None:
        self._field, self._limit = field, limit
        self._over = over
        self._freed = freed
        self._lock = threading.Lock()
        self._holders = 0
        self._lease: UUID | None = None
        self._given_back = threading.Event()

    @contextmanager
    def held(self, say: Say, alive: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._lease = self._acquire(say, alive)
                self._keep(self._lease, say)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._give_back()

    def _acquire(self, say: Say, alive: Callable[[], None]) -> UUID:
        began, told = time.monotonic(), False
        with _client() as client:
            while True:
                lease, wait = self._ask(client, say)
                if lease is not None:
                    if told:
                        say(f"{self._field}: has a slot of {self._limit}, after {time.monotonic() - began:.0f} s")
                    return lease
                if not told:
                    say(f"{self._field}: waits for a slot of Prefect's concurrency limit {self._limit}")
                    told = True
                until = time.monotonic() + wait
                while time.monotonic() < until:
                    if self._over.wait(_LOOK_SECONDS):
                        raise RunError(f"{self._field}: the run ended while it waited for a slot of {self._limit}")
                    alive()

    def _ask(self, client: SyncPrefectClient, say: Say) -> tuple[UUID | None, float]:
        """A lease of a slot, or None and the seconds to wait."""
        try:
            answer = client.increment_concurrency_slots_with_lease(
                [self._limit], 1, "concurrency", LEASE_SECONDS, _holder()
            ).json()
        except httpx.HTTPStatusError as error:
            match error.response.status_code:
                case httpx.codes.LOCKED:
                    _free_expired(client)
                    return None, min(float(error.response.headers.get("Retry-After", 1)), _LONGEST_WAIT)
                case httpx.codes.UNPROCESSABLE_ENTITY:
                    raise UserError(
                        f"{self._field}: Prefect's concurrency limit {self._limit} has no slots; raise it with "
                        f"'prefect gcl update {self._limit} --limit 1'"
                    ) from None
            raise
        if answer["limits"]:
            return UUID(answer["lease_id"]), 0.0
        # Without a limit of that name Prefect lets everybody through.
        with suppress(ObjectAlreadyExists):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=self._limit, limit=1))
            say(f"{self._field}: Prefect had no concurrency limit {self._limit}; made with one slot")
        return self._ask(client, say)

    def _keep(self, lease: UUID, say: Say) -> None:
        """Renew the lease in a thread until it is given back."""
        given_back = self._given_back = threading.Event()

        def renew() -> None:
            with _client() as client:
                while not given_back.wait(_RENEW_SECONDS):
                    try:
                        client.renew_concurrency_lease(lease, LEASE_SECONDS)
                    except httpx.HTTPStatusError as error:
                        if not error.response.is_server_error and not given_back.is_set():
                            say(f"{self._field}: the slot of {self._limit} is lost; another run may have it by now")
                            return
                    except httpx.HTTPError:
                        continue

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(renew,), name=f"slot of {self._limit}", daemon=True).start()

    def _give_back(self) -> None:
        try:
            self._freed()
        finally:
            self._given_back.set()
            lease, self._lease = self._lease, None
            # If the server does not answer, the lease ends by itself.
            with suppress(httpx.HTTPError), _client() as client:
                assert lease is not None
                client.release_concurrency_slots_with_lease(lease)


def _free_expired(client: SyncPrefectClient) -> None:
    """Give back slots of processes that are gone, where the server of a run alone has nobody to do it."""
    for file in (prefect_home() / "concurrency_leases").glob("*-*.json"):
        try:
            lease = json.loads(file.read_text(encoding="utf-8"))
            gone = datetime.now(UTC) - datetime.fromisoformat(lease["expiration"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        # Prefect's own service, which a lasting server has, looks every 15 seconds.
        if gone.total_seconds() > _RENEW_SECONDS:
            with suppress(httpx.HTTPError):
                client.release_concurrency_slots_with_lease(UUID(file.stem))


def _client() -> SyncPrefectClient:
    return get_client(httpx_settings={"timeout": _REQUEST_SECONDS}, sync_client=True)


def _holder() -> ConcurrencyLeaseHolder | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return ConcurrencyLeaseHolder(type="flow_run", id=context.flow_run.id)
