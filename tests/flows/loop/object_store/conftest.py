"""A real S3 server on this machine, and work folders of several "machines"."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.loop.object_store.address import WORK_VARIABLE, StoreAddress
from flows.loop.object_store.client import ObjectStore
from pipeline.sampling.ports import free_port
from tests.support.s3_server import BUCKET, S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(free_port(), tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, found by clients of this process; work folders are in ``tmp_path``."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / "here"))
    return s3_server


@pytest.fixture
def store(s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> ObjectStore:
    """The objects of a run of this test alone."""
    return ObjectStore(StoreAddress("s3", BUCKET, f"{request.node.name[:60]}/{tmp_path.name}"), tmp_path)
