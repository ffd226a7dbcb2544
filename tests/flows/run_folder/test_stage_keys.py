"""A whole run whose judge repeats the key that it was sent: where the key is afterwards, and what processes did."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import ServerSampler
from pipeline.config.files import load_config
from pipeline.errors import UserError
from tests.support.judge_server import JudgeServer, judge_server, longer_wins
from tests.support.places import ROOT
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context, train

KEY = "qz7-Xw4NbV9rLk2Tt8"
# Every process of a run, whatever started it, notes which classes it took out of pickles and where it listens.
WITNESS = """
import os, sys
if "--socket" in sys.orig_argv:
    with open(os.environ["WITNESS"], "a") as lines:
        lines.write(f"{sys.orig_argv[sys.orig_argv.index('-m') + 1]} has the key: {'JUDGE' in os.environ}\\n")
def note(event, args):
    if event in ("pickle.find_class", "socket.bind"):
        line = f"{event} {args[1:] if event == 'pickle.find_class' else args[1]!r} {sys.argv[:3]}\\n"
        descriptor = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)
sys.addaudithook(note)
"""
# What somebody may write to see what is wrong.
PRINTS = """
import os
def reward(prompt, response, answer):
    print("the environment is", os.environ, flush=True)
    return float(len(response))
"""


@dataclass
class Made:
    """What the run left: all it wrote in ``place``, what it printed, what the witness saw."""

    place: Path
    refused: subprocess.CompletedProcess[str]
    finished: subprocess.CompletedProcess[str]
    noted: list[str]
    server: JudgeServer


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    place, inputs = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("inputs")
    model = save_tiny_model(inputs / "model")
    (inputs / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the cat {n}"}) + "\n" for n in range(10)))
    (inputs / "sitecustomize.py").write_text(WITNESS)
    (inputs / "rewards.py").write_text(PRINTS)
    with judge_server(longer_wins) as server:
        (inputs / "job.yaml").write_text(
            f"name: job\nmode: iterative\nrounds: 1\npolicy: {{path: {model}}}\nheld_out: {{prompts: 2}}\n"
            f"prompts: {{path: {inputs / 'prompts.jsonl'}}}\nsampler: {{kind: transformers}}\n"
            "sampling: {n: 2, max_tokens: 6}\ntraining: {batch_size: 4, reference_cache: null}\n"
            f"gate: {{second: {{kind: function, file: {inputs / 'rewards.py'}}}}}\n"
            f"scorer: {{kind: judge, server: {{base_url: '{server.url}', model: m, api_key_env: JUDGE, backoff: 0}}}}\n"
        )
        environment = {
            **os.environ,
            "JUDGE": KEY,
            "PREFECT_HOME": str(place / "prefect"),
            "PYTHONPATH": f"{inputs}:{ROOT}",
            "WITNESS": str(inputs / "witness"),
        }

        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "flows", "run", str(inputs / "job.yaml")]
            return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=800)

        server.always = "401"
        refused = run()
        server.always, server.faults = "", ["500", "400", "429 0"]
        yield Made(place, refused, run(), (inputs / "witness").read_text().splitlines(), server)


@pytest.mark.whole
@pytest.mark.timeout(1800)
def test_the_key_is_sent_and_written_nowhere(made: Made) -> None:
    assert made.refused.returncode == 2 and "the server refuses the key in JUDGE" in made.refused.stderr
    assert made.finished.returncode == 0, made.finished.stderr
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in made.server.headers_seen)
    files = [file for file in made.place.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"config.yaml", "prefect.log", "trainer.log", "spending.jsonl", "report.html", "labels.sqlite"} <= names
    assert any(name.startswith("prefect.db") for name in names)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in made.refused.stdout + made.refused.stderr + made.finished.stdout + made.finished.stderr
    printed = next(file for file in files if file.name == "trainer.log").read_text()
    assert "the environment is" in printed and "'JUDGE': '[hidden]'" in printed


@pytest.mark.whole
def test_only_the_process_that_asks_the_judge_has_the_key(made: Made) -> None:
    told = {line for line in made.noted if "has the key" in line}
    assert told == {
        "flows.stages.trainer_service has the key: True",
        "flows.workers.sampler_service has the key: False",
    }


@pytest.mark.whole
def test_no_process_reads_pickles_or_listens_to_others(made: Made) -> None:
    assert not [line for line in made.noted if line.startswith("pickle.find_class")]
    bound = [line for line in made.noted if line.startswith("socket.bind ('")]
    assert bound and all(line.startswith("socket.bind ('127.0.0.1'") for line in bound)


def test_an_address_with_a_key_in_it_is_no_address(job: Path) -> None:
    for section in (
        "sampler={kind: server, base_url: 'http://me:%s@host/v1'}",
        "sampler={kind: server, base_url: 'http://host/v1?key=%s'}",
    ):
        with pytest.raises(UserError, match=r"sampler\.base_url: must not hold a user or a query"):
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
