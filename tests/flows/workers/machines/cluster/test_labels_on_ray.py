"""Reward models on two machines of a Ray cluster: whatever is lost, the labels have the bits of one process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.workers.machines.cluster.crew import LabelCrew
from flows.workers.machines.cluster.home import home_of
from flows.workers.machines.cluster.remote import RemoteChild
from flows.workers.pool.label_engine import EngineTimes, LabelPool
from pipeline.config import ClassifierScorer, RayCluster, RunConfig
from pipeline.errors import UserError
from reward_models.answers.parts import LocalModel
from tests.support.ray_cluster import Nodes, kill
from tests.support.reward_engines import MODEL_KINDS, TO_LABEL, alone, groups_for, local_models

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

TIMES = EngineTimes(800, 800)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    return local_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def crew(
    cluster: Nodes, models: dict[str, LocalModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelCrew]:
    root = tmp_path_factory.mktemp("run")
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "mode": "iterative",
            "policy": {"path": "policy"},
            "prompts": {"path": "prompts.jsonl"},
            "scorer": {"kind": "classifier", "path": models["classifier"].settings["path"]},
            "sampler": {"kind": "transformers", "keep_warm": "never"},
            "labelling": {"engines": 2},
            "cluster": {"kind": "ray", "address": cluster.address, "lost_after": 20, "place_timeout": 60},
        }
    )
    assert isinstance(config.cluster, RayCluster)
    # As the run's driver has done before anything is labelled.
    home_of(root, frozenset())
    with LabelCrew(config.cluster, config, root) as made:
        yield made


def pool(crew: LabelCrew, model: LocalModel, folder: Path) -> LabelPool:
    return LabelPool(model, folder / "labeller.log", crew.seats(), {}, TIMES, crew.start)


def actor(engines: LabelPool, number: int) -> Any:
    worker = engines.engines[number]._worker
    assert isinstance(worker, RemoteChild)
    return worker._host


def ask(host: Any, name: str) -> Any:
    import ray

    return ray.get(host.__getattr__(name).remote(), timeout=600)


def test_killed_and_hanging_actors_are_replaced_and_the_labels_stay(
    crew: LabelCrew, models: dict[str, LocalModel], tmp_path: Path
) -> None:
    model, told, stopped = models["classifier"], list[int](), list[int]()
    expected = alone(model, TO_LABEL)
    assert None not in expected and len({*expected}) > len(expected) / 4
    with pool(crew, model, tmp_path) as engines:
        assert [engine.name for engine in engines.engines] == ["labeller 0", "labeller 1"]

        def hurt(place: int, value: float | None) -> None:
            told.append(place)
            if len(told) == 3:
                kill(ask(actor(engines, 0), "facts")["pid"])
            if len(told) == 10:
                stopped.append(ask(actor(engines, 1), "facts")["pid"])
                os.kill(stopped[0], signal.SIGSTOP)

        assert engines.values(TO_LABEL, hurt) == expected
        kill(*stopped)
        assert stopped and sorted(told) == [*range(3 * len(TO_LABEL))]
        assert engines.facts["truncated_conversations"] == 0
        # A process that ends under its actor.
        kill(ask(actor(engines, 0), "pid"))
        assert engines.values(TO_LABEL[:7]) == alone(model, TO_LABEL[:7])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "implicit" else pytest.mark.whole) for kind in MODEL_KINDS[1:]]
)
def test_every_kind_of_model_gives_the_bits_of_one_process(
    crew: LabelCrew, models: dict[str, LocalModel], tmp_path: Path, kind: str
) -> None:
    expected = alone(models[kind], groups_for(kind))
    assert None not in expected and len({*expected}) > len(expected) / 4
    engines = pool(crew, models[kind], tmp_path)
    with engines:
        assert engines.values(groups_for(kind)) == expected


def test_a_model_that_is_not_there_is_named(crew: LabelCrew, tmp_path: Path) -> None:
    absent = LocalModel("classifier", ClassifierScorer(path=str(tmp_path / "none")).model_dump(mode="json"))
    with pytest.raises(UserError, match=r"scorer.path: .*none"):
        pool(crew, absent, tmp_path)
