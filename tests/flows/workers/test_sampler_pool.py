"""The sampler as its callers see it: answers come while engines work; a crash costs no answer and changes no bit."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.workers.child import Child
from flows.workers.messages import Load, Request
from flows.workers.pool import sampler_pool
from flows.workers.pool.sampler_pool import SamplerPool, load_facts
from flows.workers.pool.seating import Seat
from pipeline import config
from pipeline.config import SamplingSettings
from pipeline.errors import RunError
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_sampler import vllm_process, write_true_probe

SETTINGS = SamplingSettings(n=2, max_tokens=8)
ENGINE = config.TransformersSampler(dtype="float32", batch_size=4, retries=1)


def requests(count: int) -> list[SampleRequest]:
    draw = random.Random(1)
    return [SampleRequest(tuple(draw.randrange(7, 290) for _ in range(draw.randrange(3, 40))), i) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamplerPool]:
    """One engine on all cores."""
    with SamplerPool(ENGINE, config.ChatSettings(), tmp_path_factory.mktemp("one") / "sampler.log") as pool:
        yield pool


@pytest.fixture
def process(made: SamplerPool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SamplerPool:
    """``made`` with the policy; its blocks have 8 requests."""
    monkeypatch.setattr(sampler_pool, "SORTED_TOGETHER", 8)
    made.load(str(folder))
    return made


@pytest.fixture(scope="module")
def three(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamplerPool]:
    """Three engines of one core each, with the policy."""
    cores = sorted(os.sched_getaffinity(0))
    seats = [Seat(f"engine {n}", cores=(cores[n % len(cores)],), alone=False) for n in range(3)]
    log = tmp_path_factory.mktemp("three") / "sampler.log"
    with SamplerPool(ENGINE, config.ChatSettings(), log, seats=seats) as pool:
        pool.load(str(folder))
        yield pool


def test_each_engine_s_handshake_is_told(three: SamplerPool, made: SamplerPool, folder: Path) -> None:
    one = load_facts(made.load(str(folder)))
    assert one is not None and not {"engine", "others"} & {*one}
    facts = load_facts(three.load(str(folder)))
    assert facts is not None
    others: Any = facts["others"]
    assert sorted([facts["engine"], *(other["engine"] for other in others)]) == ["engine 0", "engine 1", "engine 2"]
    assert all({*one} <= {*other} and other["max_difference"] <= facts["max_difference"] for other in others)


def crash(pool: SamplerPool, number: int = 0) -> None:
    pid = pool.engines[number].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def bits(groups: list[tuple[Response, ...]]) -> list[list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    return [[(r.token_ids, r.logprobs) for r in group] for group in groups]


def test_one_two_and_three_engines_give_the_same_bits_and_so_does_one_that_is_killed(
    process: SamplerPool, three: SamplerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(44)
    expected = bits(list(process.sample(asked, SETTINGS, shard=20)))
    assert bits(list(three.sample(asked, SETTINGS, shard=20))) == expected
    answers = three.sample(asked, SETTINGS, shard=20)
    got = [next(answers)]
    before = three.pids
    crash(three, 1)
    assert bits([*got, *answers]) == expected
    # The one that was killed has been replaced, or its part was done by the others.
    assert [three.engines[number].pid for number in (0, 2)] == [before[0], before[2]]
    with monkeypatch.context() as two:
        two.setattr(three, "engines", three.engines[:2])
        assert bits(list(three.sample(asked, SETTINGS, shard=20))) == expected
        assert len(three.pids) == 2


@pytest.mark.whole
def test_a_mixture_has_the_same_bits_for_any_number_of_engines_of_which_each_checks_both_models(
    process: SamplerPool, three: SamplerPool, folder: Path, tmp_path: Path
) -> None:
    other, settings = write_true_probe(save_tiny_model(tmp_path / "other", seed=1)), SETTINGS
    mixed = settings.model_copy(update={"mixture": config.SamplingMixture(weight=0.5)})
    asked, plain = requests(44), bits(list(process.sample(requests(44), settings, shard=20)))
    for pool in (process, three):
        loaded = pool.load(str(folder), mixed=(str(other), str(other)))
        assert loaded.mixed_difference is not None and loaded.mixed_difference < 1e-3
    expected = bits(list(process.sample(asked, mixed, shard=20)))
    answers = three.sample(asked, mixed, shard=20)
    got = [next(answers)]
    crash(three, 1)
    assert bits([*got, *answers]) == expected != plain
    with pytest.raises(RunError, match=r"engine \d: sampling\.mixture: .*other: weight handshake"):
        three.load(str(folder), mixed=(str(other), str(folder)))
    three.load(str(folder))
    assert bits(list(three.sample(asked, settings, shard=20))) == plain


def test_the_last_shards_alone_give_the_bits_that_they_have_among_all(process: SamplerPool) -> None:
    asked = requests(20)
    everything = bits(list(process.sample(asked, SETTINGS, shard=10)))
    assert bits(list(process.sample(asked[10:], SETTINGS, shard=10))) == everything[10:]


def test_a_stale_engine_among_fresh_ones_is_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)

    class Stale(Child[Any]):
        """Loads other weights than it is asked for."""

        def call(self, request: Request, *args: Any) -> Any:
            wrong = isinstance(request, Load)
            return super().call(Load(str(other), str(folder)) if wrong else request, *args)

    def start(service: Any, init: Request, log: Path, timeout: float, seat: Seat, env: Any) -> Child[Any]:
        kind = Stale if seat.name == "engine 1" else Child
        return kind(service, init, log, timeout, env)

    seats = [Seat("engine 0"), Seat("engine 1")]
    log = tmp_path / "logs" / "sampler.log"
    with SamplerPool(ENGINE, config.ChatSettings(), log, seats=seats, start=start) as pool:
        with pytest.raises(RunError, match=r"^engine 1: .*probe|^engine 1: .*differ"):
            pool.load(str(folder))
        assert [engine.pid is None for engine in pool.engines] == [False, True]
    assert (log.parent / "handshake_1.json").exists() and not (log.parent / "handshake.json").exists()


@pytest.mark.whole
def test_a_crash_in_the_middle_costs_no_answer_and_changes_none(process: SamplerPool) -> None:
    asked = requests(40)
    expected = bits(list(process.sample(asked, SETTINGS)))
    answers = process.sample(asked, SETTINGS)
    got = [next(answers)]
    for _ in range(2):  # more often than ``retries``, but with answers in between
        crash(process)
        got += [next(answers) for _ in range(17)]
    assert bits([*got, *answers]) == expected


@pytest.mark.whole
def test_a_load_in_the_midst_of_which_the_engine_dies_is_tried_again(
    process: SamplerPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.close()
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


def stop(pool: SamplerPool, number: int = 0) -> None:
    """The child hangs, as far as its parent can tell."""
    pid = pool.engines[number].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


@pytest.mark.whole
def test_an_engine_that_hangs_is_replaced_after_its_deadline_and_costs_no_answer(
    three: SamplerPool, short_deadlines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_pool, "SORTED_TOGETHER", 8)
    asked = requests(60)
    expected = bits(list(three.sample(asked, SETTINGS)))
    answers = three.sample(asked, SETTINGS)
    got = [next(answers)]
    hung = three.engines[2].pid
    stop(three, 2)
    assert bits([*got, *answers]) == expected
    assert three.engines[2].pid != hung


def test_a_swap_that_hangs_ends_with_the_engine_s_last_words(
    process: SamplerPool, folder: Path, short_deadlines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = process.engines[0]
    monkeypatch.setattr(engine, "_settings", ENGINE.model_copy(update={"start_timeout": 123.0, "retries": 0}))
    with engine._log.open("a") as log:
        log.write("loading the weights of layer 7\n")
    stop(process)
    with pytest.raises(RunError, match=r"(?s)load was silent for 123 seconds.*last lines of.*weights of layer 7"):
        process.load(str(folder))
    assert engine.pid is None


def test_a_crash_without_an_answer_in_between_is_final(process: SamplerPool, folder: Path) -> None:
    answers = process.sample(requests(4), SETTINGS)
    (folder / "config.json").rename(folder / "hidden.json")
    crash(process)
    try:
        with pytest.raises(RunError, match="cannot load"):
            next(answers)
    finally:
        (folder / "hidden.json").rename(folder / "config.json")


@pytest.mark.whole
def test_an_engine_that_was_given_up_is_replaced(process: SamplerPool) -> None:
    asked = requests(12)
    expected = list(process.sample(asked, SETTINGS))
    answers = process.sample(asked, SETTINGS)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert bits(list(process.sample(asked, SETTINGS))) == bits(expected)


@pytest.mark.whole
def test_two_engines_of_vllm_give_the_tokens_of_one(folder: Path, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    seats = [Seat(f"engine {n}", cores=(cores[n % len(cores)],), alone=False) for n in range(2)]
    asked, settings = requests(60), SETTINGS.model_copy(update={"max_tokens": 24})
    found = []
    for name, given in (("one", seats[:1]), ("two", seats)):
        # So few at once that most requests are sent while others are answered.
        with vllm_process(tmp_path / name / "sampler.log", given, max_num_seqs=4, retries=1) as pool:
            pool.load(str(folder))
            answers = pool.sample(asked, settings)
            got = [next(answers)]
            if name == "two":
                crash(pool, 1)
            found.append([*got, *answers])
    one, two = ([(r.token_ids, r.logprobs) for group in groups for r in group] for groups in found)
    assert [ids for ids, _ in one] == [ids for ids, _ in two]
    # The last bits depend on what shares a batch.
    assert all(a == pytest.approx(b, abs=1e-5) for (_, a), (_, b) in zip(one, two, strict=True))
