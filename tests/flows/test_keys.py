"""A run whose judge repeats the key that it was sent: where the key is afterwards, and what was read on the way."""

import sys
from pathlib import Path

import pytest

from pipeline.config import ServerSampler
from pipeline.configfile import load_config
from pipeline.types import UserError
from tests.judge_server import judge_server, longer_wins
from tests.tiny_run import begin, make_job, open_context, supply, train

KEY = "qz7-Xw4NbV9rLk2Tt8"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def test_the_key_is_sent_and_written_nowhere(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE", KEY)
    with judge_server(longer_wins) as server:
        scorer = (
            f"scorer={{kind: judge, server: {{base_url: '{server.url}', model: m, api_key_env: JUDGE, backoff: 0}}}}"
        )
        context = open_context(job, tmp_path / "runs" / "run", "iterative", scorer)
        begin(context)
        server.always = "401"
        with pytest.raises(UserError, match="the server refuses the key in JUDGE") as refused:
            supply(context, 1)
        server.always, server.faults = "", ["500", "400", "429 0"]
        supply(context, 1)
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers_seen)
    assert KEY not in str(refused.value) and KEY not in "".join(capfd.readouterr())
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert {"manifest.json", "spending.jsonl", "labels.sqlite"} <= {file.name for file in files}
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_an_address_with_a_key_in_it_is_no_address(job: Path) -> None:
    for section in (
        "sampler={kind: server, base_url: 'http://me:%s@host/v1'}",
        "sampler={kind: server, base_url: 'http://host/v1?key=%s'}",
    ):
        with pytest.raises(UserError, match=r"sampler\.base_url: must hold neither a user nor a query"):
            load_config([job / "offline.yaml"], [section % KEY])
    assert ServerSampler(base_url="http://127.0.0.1:8000/v1").base_url is not None


def test_a_round_of_training_opens_no_pickle(job: Path, tmp_path: Path) -> None:
    opened: list[str] = []
    watching = True

    def note(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "pickle.find_class":
            opened.append(f"{args[1]}.{args[2]}")

    # A hook stays for the life of the process; afterwards this one notes nothing.
    sys.addaudithook(note)
    context = open_context(
        job, tmp_path / "run", "offline", "training.optimiser_state=carried", "training.checkpoint_every=1"
    )
    begin(context)
    train(context, 1)
    train(context, 2)
    watching = False
    assert not opened
