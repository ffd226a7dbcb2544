"""Reward models in engines of their own: the bits of one process, whatever happens to an engine."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.stages.run import run_stage
from flows.workers.pool.label_engine import EngineTimes, LabelPool, label_seats
from flows.workers.pool.seating import Seat
from pipeline.config import ClassifierScorer, RunConfig
from pipeline.errors import UserError
from pipeline.storage.rows import read_groups
from reward_models.answers.parts import LocalModel
from reward_models.local.silver import ImplicitReward, ImplicitSettings, Members
from tests.support.reward_engines import COMPARED, MODEL_KINDS, TO_LABEL, alone, groups_for, local_models
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

TIMES = EngineTimes(200, 200)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    return local_models(tmp_path_factory.mktemp("models"))


def pool(model: LocalModel, count: int, folder: Path, times: EngineTimes = TIMES) -> LabelPool:
    cores = sorted(os.sched_getaffinity(0))
    seats = [Seat(f"labeller {n}", (), (cores[n % len(cores)],), alone=False) for n in range(count)]
    return LabelPool(model, folder / "labeller.log", seats, {}, times)


@pytest.mark.whole
@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_one_two_and_three_engines_give_the_bits_of_one_process(
    models: dict[str, LocalModel], tmp_path: Path, kind: str
) -> None:
    expected = alone(models[kind], groups_for(kind))
    assert None not in expected and len({*expected}) > len(expected) / 4
    for count in (1, 2, 3):
        with pool(models[kind], count, tmp_path / str(count)) as engines:
            assert engines.values(groups_for(kind)) == expected
            assert engines.values(groups_for(kind)[:7]) == alone(models[kind], groups_for(kind)[:7])


def test_an_engine_that_is_killed_or_stops_is_replaced_and_the_bits_stay(
    models: dict[str, LocalModel], tmp_path: Path
) -> None:
    model, told = models["classifier"], list[int]()
    with pool(model, 2, tmp_path, EngineTimes(200, 8)) as engines:

        def hurt(place: int, value: float | None) -> None:
            told.append(place)
            pid = engines.engines[0].pid
            if len(told) in (3, 10) and pid is not None:
                os.kill(pid, signal.SIGKILL if len(told) == 3 else signal.SIGSTOP)

        assert engines.values(TO_LABEL, hurt) == alone(model, TO_LABEL)
        assert sorted(told) == [*range(3 * len(TO_LABEL))]
        assert engines.facts["truncated_conversations"] == 0


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = LocalModel("classifier", ClassifierScorer(path=str(tmp_path / "none")).model_dump(mode="json"))
    with pytest.raises(UserError, match=r"scorer.path: .*none"):
        pool(absent, 1, tmp_path)


@pytest.mark.whole
def test_the_runs_own_models_score_alike_in_engines(models: dict[str, LocalModel], tmp_path: Path) -> None:
    opened = list[LabelPool]()

    def open_pool(model: LocalModel) -> LabelPool:
        opened.append(pool(model, 1, tmp_path))
        return opened[-1]

    implicit = ImplicitSettings.of(models["implicit"].settings)
    ours = ImplicitReward(implicit, open_pool).score(TO_LABEL[:5])
    opened[-1].close()
    assert ours == ImplicitReward(implicit).score(TO_LABEL[:5])
    folders: Any = models["members"].settings["folders"]
    both = Members([Path(one) for one in folders], engines=open_pool)
    theirs = Members([Path(one) for one in folders])
    found = both.score(TO_LABEL[:5]), both.margins(COMPARED[:5])
    opened[-1].close()
    assert found == (theirs.score(TO_LABEL[:5]), theirs.margins(COMPARED[:5]))


def test_more_engines_than_cards_or_cores_are_refused() -> None:
    job = {"name": "t", "mode": "offline", "policy": {"path": "p"}, "pairs": {"path": "q"}}

    def seats(engines: Any, rest: Seat) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        config = RunConfig.model_validate({**job, "labelling": {"engines": engines}})
        return [(seat.name, seat.cards, seat.cores) for seat in label_seats(config, rest)]

    cards, cores = Seat("trainer", ("4", "6")), Seat("trainer", (), (0, 1, 2))
    assert seats("auto", cards) == [("labeller 0", ("4",), ()), ("labeller 1", ("6",), ())]
    assert seats("auto", cores) == [("labeller", (), (0, 1, 2))]
    assert seats(2, cores) == [("labeller 0", (), (0, 1)), ("labeller 1", (), (2,))]
    with pytest.raises(UserError, match=r"labelling.engines: 3 engines .* cards 4,6; allowed: 1 to 2, or"):
        seats(3, cards)
    with pytest.raises(ValidationError, match=r"labelling.engines"):
        seats(0, cards)


@pytest.mark.whole
def test_a_round_is_labelled_by_several_engines_as_by_one(models: dict[str, LocalModel], tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    scorer = f"scorer={{kind: classifier, path: {models['classifier'].settings['path']}, batch_tokens: 90}}"
    found = []
    for engines in (1, 2):
        root = tmp_path / str(engines) / "run"
        context = open_context(job, root, "iterative", scorer, f"labelling.engines={engines}", "prompts_per_round=8")
        begin(context)
        workers: Any = InventedResponses(job / "model")
        run_stage(context, 1, "samples", workers)
        run_stage(context, 1, "labels")
        stage = context.run.stage(1, "labels")
        metrics = {**stage.require().metrics}
        for of_time in ("labels_per_second", "peak_memory"):
            metrics.pop(of_time)
        found.append(([*read_groups(stage.folder)], metrics))
        assert (root / "logs" / "labeller_1.log").is_file() == (engines == 2)
    assert found[0] == found[1] and found[0][1]["labels"] == 24
