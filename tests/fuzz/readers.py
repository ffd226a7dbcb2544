"""The readers, each with inputs of its own; and how one input is tried: watched for errors, time and memory."""

import contextlib
import io
import json
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from flows.commands.cli.arguments import split
from flows.planning.rates.given import given_rates
from flows.preflight.data import check_data
from flows.report.terminal import print_table, read_rounds
from flows.run_folder.approvals import read_approval, read_decision
from flows.stages.context import Context
from flows.stages.data import data as data_stage
from pipeline.config import FileData, RunConfig
from pipeline.config.files import dump_config, load_config
from pipeline.data.reading import PromptRow, read_preferences, read_prompts
from pipeline.errors import RunError, UserError
from pipeline.evaluation.gate import Approval, Decision
from pipeline.storage.manifest import Manifest, StageKey
from pipeline.storage.rows import text_row
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed.launch import read_launch
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.spending import Call, Ledger
from reward_models.people.people import read_answers
from tests.fuzz.inputs import accelerate_config, config_layers, data_file, data_settings, small_file
from tests.fuzz.model_folders import model_folder, reward_function

CPU_SECONDS = 10.0
MEMORY = 400 << 20
Reader = Callable[[st.DataObject, Path], None]
MANIFEST = json.dumps(
    {
        "stage": "pairs",
        "round": 1,
        "key": "0123456789abcdef",
        "config": {"a": 1},
        "inputs": {"labels": "x"},
        "seed": 0,
        "rows": 3,
        "seconds": 1.5,
        "metrics": {"dropped": {"tie": 1}, "margin": 0.5},
        "files": {"rows.parquet": {"sha256": "0" * 64, "bytes": 0}},
        "versions": {"torch": "2"},
        "finished": "2026-01-01T00:00:00Z",
    }
)
DECISION = Decision(decision="pause", reasons=("a",), best_round=1, measures={"kl": 0.5}).model_dump_json()
APPROVAL = Approval(decision="promote", by="me").model_dump_json()
METRICS = '{"round": 1, "reward": 0.5, "reward_ci": [0.1, 0.2], "win_rate_vs_start": null, "stop_rate": 1}'
CALL = Call(
    stage="labels", labeller="x", outcome="ok", prompt_tokens=3, completion_tokens=1, cost=0.5
).model_dump_json()
ASKED = Group(Prompt((Message("user", "p"),)), (1,), (Response("a", (1,), (), "stop"), Response("b", (2,), (), "stop")))
ANSWERS = f'{{"id": "{ASKED.id}", "answer": "a"}}\n{{"id": "{ASKED.id}", "answer": "tie"}}'


class SlowError(BaseException):
    """An input took longer than it may; not an ``Exception``, so that no reader takes it for a fault of a row."""


def config(data: st.DataObject, folder: Path) -> None:
    """YAML layers and overrides; what loads is written and read back."""
    overrides = data.draw(config_layers(folder))
    files = sorted(folder.glob("*.yaml"))
    loaded = load_config(files, overrides)
    again = folder / "again.yaml"
    again.write_text(dump_config(loaded), encoding="utf-8")
    assert load_config([again]) == loaded, "a config that is written and read back is another one"


def command_line(data: st.DataObject, folder: Path) -> None:
    """Arguments of ``run``, some of them files, and rates of ``plan``."""
    overrides = data.draw(config_layers(folder))
    split([*map(str, sorted(folder.glob("*.yaml"))), *overrides])
    for said in overrides:
        given_rates(said)


def _data_config(data: st.DataObject, folder: Path, mode: str, policy: str) -> RunConfig:
    file = data.draw(data_file(folder))
    source = {"path": str(file), **data.draw(data_settings())}
    plain: dict[str, object] = {"name": "x", "mode": mode, "policy": {"kind": "pretrained", "path": policy}}
    plain |= {"pairs": source} if mode == "offline" else {"prompts": source, "scorer": {"kind": "match"}}
    plain["held_out"] = {"prompts": 1}
    (folder / "config.json").write_text(json.dumps(plain))
    try:
        return RunConfig.model_validate(plain)
    except ValueError as error:
        raise UserError(str(error)) from None


def rows(data: st.DataObject, folder: Path) -> None:
    """A data file through the data stage: read, split, written as tables."""
    config = _data_config(data, folder, data.draw(st.sampled_from(("offline", "iterative"))), "none")
    source = config.pairs or config.prompts
    assert isinstance(source, FileData)
    with contextlib.suppress(UserError):
        # The stage refuses data that is too little to be split before it has read all of it.
        for reads in (read_prompts, read_preferences):
            for row in reads(source):
                assert row.value is None or isinstance(row.value, PromptRow) or text_row(row.value)
    data_stage(Context(RunFolder(folder), config), folder)


def checked(model: Path) -> Reader:
    """A data file through ``prefloop check``, with the tokenizer of ``model``."""

    def read(data: st.DataObject, folder: Path) -> None:
        config = _data_config(data, folder, data.draw(st.sampled_from(("offline", "iterative"))), str(model))
        check_data(config, folder / "faults.jsonl", lambda prompt: None)

    return read


def accelerate(data: st.DataObject, folder: Path) -> None:
    """An accelerate config."""
    file = data.draw(accelerate_config(folder))
    plain = {"name": "x", "mode": "offline", "policy": {"kind": "pretrained", "path": "m"}, "accelerate": str(file)}
    read_launch(RunConfig.model_validate({**plain, "pairs": {"kind": "file", "path": "p"}}))


def manifest(data: st.DataObject, folder: Path) -> None:
    """A stage's manifest, and a marker of one that was not completed."""
    stage = RunFolder(folder).stage(1, "pairs")
    stage.folder.mkdir(parents=True)
    (stage.folder / "rows.parquet").touch()
    content = data.draw(small_file((MANIFEST,)))
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        # Somebody who edits it may know how it is sealed.
        content = json.dumps(asdict(Manifest(**json.loads(content)).sealed())).encode()
    (stage.folder / "manifest.json").write_bytes(content)
    stage.partial.mkdir()
    (stage.partial / "key.json").write_bytes(data.draw(small_file(('{"key": "x", "seconds": 1.5}',))))
    key = StageKey({"a": 2}, {"labels": "y"}, 1)
    stage.begin(key)
    stage.complete(key)


def answers(data: st.DataObject, folder: Path) -> None:
    """answers.jsonl of the questions to people."""
    content = data.draw(small_file((ANSWERS,)))
    (folder / "answers.jsonl").write_bytes(content)
    read_answers(content, [ASKED])


def run_folder(data: st.DataObject, folder: Path) -> None:
    """Metrics, decisions, approvals, the ledger: what commands read of a run that somebody else may have edited."""
    run = RunFolder(folder)
    run.config_file.touch()
    for name, file, example in (("gate", "decision.json", DECISION), ("evaluation", "metrics.json", METRICS)):
        run.stage(1, name).folder.mkdir(parents=True)
        (run.stage(1, name).folder / file).write_bytes(data.draw(small_file((example,))))
    (folder / "approvals").mkdir()
    (folder / "approvals" / "round_001.json").write_bytes(data.draw(small_file((APPROVAL,))))
    (folder / "spending.jsonl").write_bytes(data.draw(small_file((CALL,))))
    for read in (
        lambda: read_decision(run, 1),
        lambda: read_approval(run, 1),
        lambda: print_table(folder, read_rounds(folder)),
        lambda: Ledger(folder / "spending.jsonl").spent(lambda call: True),
        lambda: run.rounds(),
    ):
        with contextlib.suppress(UserError, RunError):
            read()


@dataclass
class Tried:
    """What became of inputs.

    Attributes:
        refused: how many ended with a message of ours.
        slowest: CPU seconds, and which reader.
        failures: how often each failure came, by what it was; ``kept`` is the folder of one input for each.
    """

    inputs: int = 0
    refused: int = 0
    slowest: tuple[float, str] = (0.0, "")
    failures: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Path] = field(default_factory=dict)


def try_inputs(name: str, reader: Reader, count: int, start: int, scratch: Path, keep: Path, tried: Tried) -> None:
    """Give ``reader`` ``count`` inputs, drawn from the seed ``start``; every failure is noted, none is raised."""

    @seed(start)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(st.data())
    def each(data: st.DataObject) -> None:
        folder = scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        failure = _one(name, reader, data, folder, tried)
        if failure is None:
            return
        what, said = failure
        if what not in tried.failures:
            tried.kept[what] = keep / f"{name}_{len(tried.failures)}"
            shutil.copytree(folder, tried.kept[what], dirs_exist_ok=True)
            (tried.kept[what] / "FAILURE").write_text(f"{what}\n{said}", encoding="utf-8", errors="backslashreplace")
        tried.failures[what] = tried.failures.get(what, 0) + 1

    each()


def _one(name: str, reader: Reader, data: st.DataObject, folder: Path, tried: Tried) -> tuple[str, str] | None:
    """What failed, in words that tell failures apart, and what was said; None: nothing."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    failure: tuple[str, str] | None = None
    try:
        with _deadline(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            reader(data, folder)
    except (UserError, RunError):
        tried.refused += 1
    except SlowError as error:
        failure = f"{name}: took more than {CPU_SECONDS:g} s of CPU time", _last(error)
    except Exception as error:
        if type(error).__module__.startswith("hypothesis"):
            raise
        failure = f"{name}: {type(error).__name__}\n{_last(error)}", str(error)[:2000]
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if failure is None and grown > MEMORY:
        failure = f"{name}: took more than {MEMORY >> 20} MiB of memory", f"{grown >> 20} MiB"
    tried.inputs += 1
    tried.slowest = max(tried.slowest, (seconds, name))
    return failure


def _last(error: BaseException) -> str:
    """The innermost frame of ours, and the innermost of all: what tells two failures apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename]
    return "\n".join(f"  {f.filename}:{f.lineno} {f.name}" for f in (ours[-1:] + frames[-1:]))


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(signum: int, frame: FrameType | None) -> None:
        raise SlowError

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def readers(model: Path) -> dict[str, tuple[Reader, int]]:
    """Every reader, and its share of the inputs in percent; ``model``: a folder with a tokenizer."""
    return {
        "config": (config, 28),
        "command_line": (command_line, 4),
        "rows": (rows, 34),
        "checked": (checked(model), 4),
        "model_folder": (model_folder(model), 4),
        "reward_function": (reward_function, 2),
        "accelerate": (accelerate, 6),
        "manifest": (manifest, 8),
        "answers": (answers, 4),
        "run_folder": (run_folder, 6),
    }
