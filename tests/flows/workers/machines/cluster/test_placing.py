"""How many actors a run asks a cluster for, and what is refused before it is asked."""

import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.check import check_config
from flows.workers.machines.cluster import connection
from flows.workers.machines.cluster.connection import find_address, make_token_private
from flows.workers.machines.cluster.placing import (
    asked_of,
    placed,
    placing_lines,
    require_cluster,
    seating_on,
    seats_on,
)
from flows.workers.machines.cluster.shares import Share
from pipeline.config import RayCluster, RunConfig
from pipeline.errors import UserError
from tests.support.places import ROOT
from tests.support.small_config import write_small_config

ACCELERATE = ROOT / "configs" / "accelerate"


def run_config(address: str = "auto", accelerate: Path | None = None, cluster: Any = None, **sampler: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "mode": "offline",
            "policy": {"path": "model"},
            "pairs": {"path": "pairs.jsonl"},
            "prompts": {"path": "pairs.jsonl"},
            "sampler": {"kind": "vllm", **sampler},
            "accelerate": None if accelerate is None else str(accelerate),
            "cluster": {"kind": "ray", "address": address, **(cluster or {})},
        }
    )


def settings(config: RunConfig) -> RayCluster:
    assert isinstance(config.cluster, RayCluster)
    return config.cluster


def labelled(*models: str, **labelling: Any) -> RunConfig:
    """A run whose reward models label."""
    of_kind = [{"kind": kind} | ({} if kind == "length" else {"path": "reward"}) for kind in models]
    members = [{"scorer": one, "weight": 1} for one in of_kind]
    scorer = {"kind": "ensemble", "members": members} if len(models) > 1 else of_kind[0]
    config = run_config(kind="transformers", keep_warm="never").model_dump(mode="json", exclude_unset=True)
    return RunConfig.model_validate(
        {**config, "mode": "iterative", "pairs": None, "scorer": scorer, "labelling": labelling}
    )


def shares(config: RunConfig, *machines: tuple[float, float]) -> tuple[Share, Share, bool]:
    there = [{"CPU": cores, **({"GPU": cards} if cards else {})} for cores, cards in machines]
    found = placed(config, settings(config), there, "head:1")
    return found.engines, found.training, found.stay


def test_each_tensor_parallel_rank_has_a_card_of_its_engine_s_machine() -> None:
    config = run_config(tensor_parallel_size=2, cluster={"engine_cpus": 4})
    assert shares(config, (16, 8), (16, 3)) == (Share("engine", 5, 4, 2), Share("training process", 1, 1, 1), False)


def test_without_cards_there_is_an_engine_a_machine_and_room_for_training() -> None:
    config = run_config(kind="transformers")
    assert shares(config, (1, 0), (1, 0)) == (Share("engine", 1, 1), Share("training process", 1, 1), True)
    assert shares(config, (2, 0), (1, 0))[0].count == 2
    assert shares(run_config(kind="transformers", keep_warm="never"), (1, 0), (1, 0))[0].count == 2


def test_split_engines_leave_cards_to_training() -> None:
    config = run_config(accelerate=ACCELERATE / "ddp.yaml").model_copy(update={"placement": "split"})
    engines, training, stay = shares(config, (64, 16))
    assert stay and training.cards == 1
    assert engines.count + training.count == 16


def test_too_many_are_refused_with_what_is_there() -> None:
    with pytest.raises(UserError, match="machines: 8 cores and 4 cards, 8 cores and 4 cards"):
        shares(run_config(tensor_parallel_size=8), (8, 4), (8, 4))
    with pytest.raises(UserError, match="needed, each on one machine: 3 engines of 1 core; 1 training process of"):
        shares(run_config(kind="transformers", engines=3), (2, 0), (1, 0))


def test_stages_of_an_engine_need_a_cluster_with_cards() -> None:
    staged = run_config(kind="vllm", pipeline_parallel_size=2)
    with pytest.raises(UserError, match=r"^sampler\.pipeline_parallel_size: 2, but there is no card"):
        placed(staged, RayCluster(), [{"CPU": 4.0}], "here")


def test_processes_on_the_cpu_take_no_card() -> None:
    config = run_config(accelerate=ACCELERATE / "ddp_cpu.yaml")
    assert asked_of(config, settings(config), on_cards=True).training == Share("training process", 2, 1, 0)


def test_a_server_of_the_user_s_is_none_of_the_cluster_s() -> None:
    config = run_config(kind="server", base_url="http://127.0.0.1:8000/v1")
    engines, _, _ = shares(config, (1, 0))
    assert engines.count == 0
    there = placed(config, settings(config), [{"CPU": 1.0}], "head:1")
    assert [seat.name for seat in seating_on(config, there).engines] == ["engine"]


def test_seats_are_named_as_on_one_machine() -> None:
    config = run_config(engines=2)
    found = placed(config, settings(config), [{"CPU": 8.0, "GPU": 2.0}], "head:1")
    assert [(seat.name, len(seat.cards)) for seat in seating_on(config, found).engines] == [
        ("engine 0", 1),
        ("engine 1", 1),
    ]


def test_the_placement_is_said() -> None:
    lines = placing_lines(run_config("10.0.0.5:6379", engines=2, tensor_parallel_size=2, kind="vllm"))
    assert lines[0].startswith("placement on the Ray cluster 10.0.0.5:6379: 2 engines of 2 cores, that stay while")
    assert "1 training process of 1 core" in lines[0]
    assert "where the cluster has cards: 1 core and 2 cards for each engine" in lines[1]
    assert "auto: as many engines as fit, each of 1 core, that stay" in placing_lines(run_config())[0]
    assert placing_lines(run_config().model_copy(update={"cluster": RunConfig.model_fields["cluster"].default})) == []


def labellers(config: RunConfig, *machines: tuple[float, float]) -> tuple[Share, int]:
    there = [{"CPU": cores, **({"GPU": cards} if cards else {})} for cores, cards in machines]
    found = placed(config, settings(config), there, "head:1")
    assert [seat.name for seat in seats_on(found.labellers)] == (
        ["labeller"] if found.labellers.count == 1 else [f"labeller {n}" for n in range(found.labellers.count)]
    )
    return found.labellers, found.models


def test_reward_models_have_actors_of_their_own() -> None:
    assert labellers(labelled("classifier"), (1, 0), (1, 0)) == (Share("labeller", 1, 1), 1)
    assert labellers(labelled("classifier"), (16, 8)) == (Share("labeller", 8, 1, 1), 1)
    assert labellers(labelled("classifier", "pairwise", "length"), (16, 8)) == (Share("labeller", 4, 1, 1), 2)
    assert labellers(labelled("length"), (16, 8)) == (Share("labeller", 0, 1, 1), 0)
    split = labelled("classifier").model_copy(update={"placement": "split"})
    engines = shares(split, (16, 8))[0]
    assert engines.count == 7 and labellers(split, (16, 8))[0].count == 1


def test_more_labellers_than_fit_are_refused() -> None:
    with pytest.raises(UserError, match="no machine is left for one labeller of 1 core") as error:
        labellers(labelled("classifier", "pairwise", engines=2), (2, 0), (1, 0))
    assert "4 labellers of 1 core" in str(error.value) and "labelling.engines" in str(error.value)


def test_the_placement_of_labellers_is_said() -> None:
    assert (
        "2 labellers of 1 core for each of 2 reward models; 1 training"
        in placing_lines(labelled("classifier", "pairwise", engines=2))[0]
    )
    assert placing_lines(labelled("length"))[0].endswith("labels, judges and accounts on this one")
    assert placing_lines(labelled("classifier"))[0].endswith("machine; judges and accounts on this one")


def refusal(config: RunConfig) -> str:
    with pytest.raises(UserError) as error:
        require_cluster(config)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_an_address_that_nobody_answers_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert refusal(run_config(f"127.0.0.1:{port}")).startswith(f"cluster.address: 127.0.0.1:{port}: nothing answers (")


def test_check_asks_whether_the_cluster_is_there(tmp_path: Path) -> None:
    away = "cluster: {kind: ray, address: 'ray://head:10001'}"
    with pytest.raises(UserError, match=r"^cluster\.address: 'ray://head:10001'; allowed"):
        check_config([write_small_config(tmp_path, tmp_path / "model", away)], [])


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "ray://head", "ray://127.0.0.1:10001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert "allowed: auto, or HOST:PORT" in refusal(run_config(address))


def test_auto_reads_ray_s_variable_and_then_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "RAY_ADDRESS is not set and no cluster runs here" in refusal(run_config())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert find_address(RayCluster()) == ("127.0.0.1", port)
        monkeypatch.setenv("RAY_ADDRESS", f"localhost:{port}")
        assert find_address(RayCluster()) == ("localhost", port)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "EXTRA", ("a_module_that_nobody_has",))
    needed = "cluster.kind: ray needs Ray on all machines (pip install 'prefloop[ray]'); allowed without it: local"
    assert refusal(run_config()) == needed


def test_an_accelerate_config_of_several_machines_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 2\nmain_process_ip: 10.0.0.5\n")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        told = refusal(run_config(f"127.0.0.1:{listening.getsockname()[1]}", accelerate=file))
    assert "num_machines" in told


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o600])
def test_ray_s_own_token_is_made_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_token_private()
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("token")
    file.chmod(mode)
    make_token_private()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == "token"
