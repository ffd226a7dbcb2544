"""A Prefect server that fails while a flow runs."""

import sqlite3
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_HOME, temporary_settings

from flows.prefect_api.server import ServerLostError, going_on, prefect_api
from pipeline.errors import RunError

pytestmark = pytest.mark.whole


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


def test_a_server_that_is_gone_before_the_first_word_with_it_is_told_too(tmp_path: Path) -> None:
    """Like one that is lost later: the command goes on by itself where the server was somebody's own."""
    gone = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        pytest.raises(RunError, match=r"server failed \(.*Connection refused\)"),
        prefect_api(tmp_path / "server.log"),
    ):
        url = PREFECT_API_URL.value()
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(ServerLostError, match="is out of reach"),
            prefect_api(tmp_path / "not written.log"),
            temporary_settings(gone),
        ):
            nothing()
        with temporary_settings(gone):
            nothing()


@pytest.mark.parametrize("option", [["--from", "2:policy"], ["--from=2:policy"]])
def test_a_command_that_goes_on_sets_nothing_aside_a_second_time(option: list[str]) -> None:
    assert going_on(["-m", "flows", "run", "a.yaml", *option, "seed=1"]) == ["-m", "flows", "run", "a.yaml", "seed=1"]
