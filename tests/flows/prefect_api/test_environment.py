"""The environment that the command line sets up for itself and its children."""

import os

import pytest

from flows.prefect_api.environment import DEFAULTS, prepare_environment


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        # Set first, so that what is made of it is undone after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("bare")
def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    prepare_environment()
    assert {name: os.environ[name] for name in DEFAULTS} == DEFAULTS | {"DO_NOT_TRACK": "0"}


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("policy", ["ACTIVE", "PASSIVE"])
def test_turns_of_waiting_threads_do_not_take_the_place_of_a_policy(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == policy and "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.usefixtures("bare")
def test_turns_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "7" and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
