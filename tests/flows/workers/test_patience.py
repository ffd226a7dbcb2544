"""Children of a large policy may be silent for longer."""

from pathlib import Path

import pytest

from flows.workers.local import Workers, with_context
from flows.workers.patience import SECONDS_A_GB, further_seconds
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from tests.support.small_config import write_small_config
from tests.support.tiny_model import save_tiny_model


def config_of(folder: Path, gigabytes: int, *settings: str) -> RunConfig:
    """A policy whose second file claims a size, and has no content on the disk."""
    model = save_tiny_model(folder / "model")
    with (model / "model-2.safetensors").open("wb") as file:
        file.truncate(gigabytes * 10**9)
    return load_config([write_small_config(folder, model)], [*settings])


def test_limits_grow_with_the_largest_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, 16)
    assert further_seconds(config) == pytest.approx(16 * SECONDS_A_GB, abs=0.1)
    assert with_context(config).start_timeout == pytest.approx(config.sampler.start_timeout + 160, abs=0.1)
    reward = tmp_path / "reward"
    reward.mkdir()
    with (reward / "model.safetensors").open("wb") as file:
        file.truncate(30 * 10**9)
    scored = config.model_copy(
        update={
            "scorer": load_config(
                [write_small_config(tmp_path, tmp_path / "model")],
                ["scorer={kind: classifier, path: " + str(reward) + "}"],
            ).scorer
        }
    )
    assert further_seconds(scored) == pytest.approx(300)


def test_a_hub_name_adds_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1, "policy.path=owner/model")
    assert further_seconds(config) == 0


def test_training_may_be_silent_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    class Told:
        alive = True

        def __init__(self, *_: object) -> None: ...

        def call(self, request: object, reply: object, timeout: float, on_progress: object = None) -> None:
            given.append(timeout)

        def close(self) -> None: ...

    monkeypatch.setattr("flows.workers.local.Child", Told)
    config = config_of(tmp_path, 140)
    with Workers(tmp_path, config) as workers:
        workers.run_stage(1, "policy", lambda *_: None)
    assert given == [pytest.approx(config.training.stall_timeout + 1400, abs=0.1)]
