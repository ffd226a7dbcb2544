"""One writer per URL, by conditional writes to a real S3 server."""

import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flows.loop.object_store.client import LostWriteError, ObjectStore
from flows.loop.object_store.store_lease import LEASE_OBJECT, hold_url, take_lease
from flows.loop.object_store.transfer import require_conditional
from pipeline.errors import RunLockedError
from pipeline.storage.atomic import json_text
from pipeline.storage.holder import own_holder, parse_holder

ELSEWHERE = {"host": "far", "machine": "another boot", "command": "prefloop run x"}


def test_conditional_writes_are_conditional(store: ObjectStore) -> None:
    etag = store.create("one", b"first")
    with pytest.raises(LostWriteError):
        store.create("one", b"second")
    with pytest.raises(LostWriteError):
        store.replace("one", b"second", '"0"')
    with pytest.raises(LostWriteError):
        store.replace("none", b"second", etag)
    assert store.read("one") == (b"first", etag) and store.read("none") is None
    assert store.replace("one", b"third", etag) != etag and store.read("one") != (b"first", etag)
    require_conditional(store)
    assert [*store.listing()] == ["one"]


def test_a_holder_elsewhere_without_a_sign_of_life_is_taken_over(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = replace(own_holder(0.5), **ELSEWHERE)
    lost_to = take_lease(store, gone)
    started = time.monotonic()
    with hold_url(store, 10, 60) as lease:
        assert time.monotonic() - started >= 0.5
        lease.check()
        with pytest.raises(LostWriteError):
            store.replace(LEASE_OBJECT, b"late heartbeat", lost_to)
    assert "taken over from process" in capsys.readouterr().err
    # Given back, it is free: nobody is waited for.
    with hold_url(store, 10, 60):
        assert "taken over" not in capsys.readouterr().err


def test_a_holder_elsewhere_whose_heart_beats_is_refused(store: ObjectStore) -> None:
    alive, stop = replace(own_holder(20.0), **ELSEWHERE), threading.Event()
    etags = [take_lease(store, alive)]

    def beat() -> None:
        while not stop.wait(0.1):
            beaten = replace(alive, beats=len(etags))
            etags.append(store.replace(LEASE_OBJECT, json_text(asdict(beaten)).encode(), etags[-1]))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunLockedError, match="on far"), hold_url(store, 10, 60):
            pass
    finally:
        stop.set()
        thread.join()


def test_of_two_takers_at_once_one_wins(store: ObjectStore) -> None:
    """Eight threads, each with a connection of its own, want what a dead holder has left; five times."""
    for _ in range(5):
        found = store.read(LEASE_OBJECT)
        dead = json_text(asdict(replace(own_holder(0.2), **ELSEWHERE))).encode()
        store.create(LEASE_OBJECT, dead) if found is None else store.replace(LEASE_OBJECT, dead, found[1])
        ready, got = threading.Barrier(8), []

        def take(ready: threading.Barrier = ready, got: list[str] = got) -> None:
            own = ObjectStore(store.address, Path())
            holder = own_holder(60)
            ready.wait()
            try:
                take_lease(own, holder)
                got.append(holder.token)
            except RunLockedError:
                got.append("refused")

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [token for token in got if token != "refused"]
        held = store.read(LEASE_OBJECT)
        assert held is not None and (holder := parse_holder(held[0])) is not None
        assert len(got) == 8 and winners == [holder.token]
