"""The sampler's process as its callers see it: answers come while it works, and a crash costs no answer."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.workers import sampler_client as sampler_process
from flows.workers.child import Child
from flows.workers.messages import Load, Request
from flows.workers.sampler_client import SamplerProcess
from pipeline import config
from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_sampler import write_true_probe

SETTINGS = SamplingSettings(n=2, max_tokens=8)


def requests(count: int) -> list[SampleRequest]:
    draw = random.Random(1)
    return [SampleRequest(tuple(draw.randrange(7, 290) for _ in range(9)), i) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


@pytest.fixture
def process(folder: Path, tmp_path: Path) -> Iterator[SamplerProcess]:
    settings = config.TransformersSampler(dtype="float32", batch_size=4, retries=1)
    with SamplerProcess(settings, config.ChatSettings(), tmp_path / "log") as made:
        made.load(str(folder))
        yield made


def crash(process: SamplerProcess) -> None:
    child = process._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)


def same(one: list[tuple[Response, ...]], other: list[tuple[Response, ...]]) -> bool:
    return [[r.token_ids for r in group] for group in one] == [[r.token_ids for r in group] for group in other]


@pytest.mark.whole
def test_a_crash_in_the_middle_costs_no_answer_and_changes_none(
    process: SamplerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(20)
    expected = list(process.sample(asked, SETTINGS))
    monkeypatch.setattr(sampler_process, "REQUESTS_A_CALL", 8)
    answers = process.sample(asked, SETTINGS)
    got = [next(answers)]
    for _ in range(2):  # more often than ``retries``, but with answers in between
        crash(process)
        got += [next(answers) for _ in range(9)]
    assert same([*got, *answers], expected)


@pytest.mark.whole
def test_a_load_in_the_midst_of_which_the_engine_dies_is_tried_again(
    process: SamplerProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, deaths = Child.call, iter(["once"])

    def dying(child: Child[Any], request: Request, *args: Any) -> Any:
        if isinstance(request, Load) and next(deaths, None):
            os.kill(child.pid, signal.SIGKILL)
        return call(child, request, *args)

    monkeypatch.setattr(Child, "call", dying)
    assert process.load(str(folder)).how == "start"
    deaths = iter(["once", "and again"])
    with pytest.raises(RunError, match=r"died during load \(signal SIGKILL\)"):
        process.load(str(folder))


def stop(process: SamplerProcess) -> None:
    """The child hangs, as far as its parent can tell."""
    child = process._child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


@pytest.mark.whole
def test_an_engine_that_hangs_is_replaced_after_its_deadline_and_costs_no_answer(
    process: SamplerProcess, short_deadlines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(20)
    expected = list(process.sample(asked, SETTINGS))
    # Not all answers are under way before it hangs.
    monkeypatch.setattr(sampler_process, "REQUESTS_A_CALL", 8)
    answers = process.sample(asked, SETTINGS)
    got = [next(answers)]
    hung = process._child
    stop(process)
    assert same([*got, *answers], expected)
    assert process._child is not hung


def test_a_swap_that_hangs_ends_with_the_engine_s_last_words(
    process: SamplerProcess, folder: Path, short_deadlines: None
) -> None:
    process._settings = process._settings.model_copy(update={"start_timeout": 123.0, "retries": 0})
    assert process._child is not None
    with process._child.log.open("a") as log:
        log.write("loading the weights of layer 7\n")
    stop(process)
    with pytest.raises(RunError, match=r"(?s)load was silent for 123 seconds.*last lines of.*weights of layer 7"):
        process.load(str(folder))
    assert process._child is None


def test_a_crash_without_an_answer_in_between_is_final(process: SamplerProcess, folder: Path) -> None:
    answers = process.sample(requests(4), SETTINGS)
    (folder / "config.json").rename(folder / "hidden.json")
    crash(process)
    try:
        with pytest.raises(RunError, match="cannot load"):
            next(answers)
    finally:
        (folder / "hidden.json").rename(folder / "config.json")


@pytest.mark.whole
def test_an_engine_that_was_given_up_is_replaced(process: SamplerProcess) -> None:
    asked = requests(12)
    expected = list(process.sample(asked, SETTINGS))
    answers = process.sample(asked, SETTINGS)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert same(list(process.sample(asked, SETTINGS)), expected)
