"""A Prefect server that fails while a flow runs."""

import sqlite3
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_HOME, temporary_settings

from flows.server import prefect_api
from pipeline.types import RunError


@flow
def nothing() -> None:
    """What is run."""


def test_a_server_whose_database_fails_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PREFECT_HOME", str(home))
    with (
        temporary_settings({PREFECT_HOME: home}),
        pytest.raises(RunError, match=rf"server failed \(500 Internal.*its database is in {home}, where [0-9,]+ bytes"),
        prefect_api(tmp_path / "server.log"),
    ):
        nothing()
        with sqlite3.connect(home / "prefect.db", timeout=60) as database:
            database.execute("DROP TABLE flow_run")
        database.close()
        nothing()
