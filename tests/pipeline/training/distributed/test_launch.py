"""What an accelerate config says of training, and what of it is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.errors import UserError
from pipeline.training.distributed.launch import Launch, read_launch
from pipeline.training.distributed.process_group import interface_towards
from pipeline.training.distributed.requirements import require_launcher
from tests.support.places import ROOT

ZERO: dict[str, Any] = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 2}}
FSDP: dict[str, Any] = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}


TWO: dict[str, Any] = {"num_machines": 2, "num_processes": 4, "main_process_ip": "10.0.0.1"}


def run_config(file: Path, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "mode": "offline",
            "policy": {"path": "p"},
            "pairs": {"path": "q"},
            "accelerate": str(file),
            "training": training,
        }
    )


def read(folder: Path, plain: dict[str, Any], **training: Any) -> Launch:
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump(plain))
    launch = read_launch(run_config(file, **training))
    assert launch is not None
    return launch


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_shipped_is_read(file: Path) -> None:
    launch = read_launch(run_config(file))
    assert launch is not None and launch.processes > 1
    assert read_launch(run_config(Path("accelerate") / file.stem)) == launch
    assert (launch.sharding is not None) == (launch.kind == "FSDP2") == file.stem.startswith("fsdp2")
    assert launch.machines == (2 if file.stem == "fsdp2_two_machines" else 1)
    assert (launch.zero is not None) == (launch.kind == "DeepSpeed") == file.stem.startswith("deepspeed")


def test_a_file_as_accelerate_writes_it(tmp_path: Path) -> None:
    text = "compute_environment: LOCAL_MACHINE\ndebug: false\ndistributed_type: NO\ngpu_ids: 0,1\nmixed_precision: no\n"
    (tmp_path / "accelerate.yaml").write_text(
        f"{text}machine_rank: 0\nnum_processes: 1\nuse_cpu: true\nrdzv_backend: static\n"
    )
    launch = read_launch(run_config(tmp_path / "accelerate.yaml"))
    assert launch is not None
    assert (launch.kind, launch.processes, launch.cpu, launch.devices) == ("DDP", 1, True, "0,1")


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type: must be one of NO, MULTI_CPU"),
        ({"distributed_type": "DEEPSPEED"}, "deepspeed_config: missing"),
        ({**ZERO, "num_processes": 1}, "num_processes: must be 2 or more"),
        ({**ZERO, "deepspeed_config": {"zero_stage": 4}}, "deepspeed_config.zero_stage: .*not 4"),
        (
            {**ZERO, "deepspeed_config": {"zero_stage": 3}},
            "deepspeed_config.zero_stage: 3 is not read; allowed: 1, 2.",
        ),
        ({**ZERO, "deepspeed_config": {"offload_optimizer_device": "nvme"}}, "offload_optimizer_device: .*not 'nvme'"),
        ({**ZERO, "deepspeed_config": {"offload_param_device": "cpu"}}, "offload_param_device: .*not 'cpu'"),
        ({**ZERO, "deepspeed_config": {"deepspeed_config_file": "z.json"}}, "deepspeed_config_file: .*not 'z.json'"),
        (
            {**ZERO, "deepspeed_config": {"gradient_clipping": 0.5}},
            "gradient_clipping: 0.5, but training",
        ),
        (
            {**ZERO, "use_cpu": True, "deepspeed_config": {"offload_optimizer_device": "cpu"}},
            "must be none",
        ),
        ({"num_machines": 0}, "num_machines: .*not 0"),
        (
            {"num_machines": 2, "num_processes": 3},
            "num_processes: 3 is not a multiple of num_machines: 2; it",
        ),
        ({"num_machines": 2, "num_processes": 4}, "main_process_ip: missing, but num_machines is 2; allowed: the addr"),
        ({**TWO, "machine_rank": 2}, "machine_rank: 2, but num_machines is 2; allowed: 0 to 1, each on one machine"),
        ({**TWO, "main_process_port": 70000}, "main_process_port: .*not 70000"),
        ({"num_processes": 0}, "num_processes: .*not 0"),
        ({"mixed_precision": "fp16"}, "mixed_precision: fp16, but training.dtype is float32"),
        ({"distributed_type": "FSDP"}, "fsdp_config: missing"),
        ({**FSDP, "fsdp_config": {"fsdp_version": 1}}, "fsdp_config.fsdp_version: .*not 1"),
        ({**FSDP, "fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}}, "gradient_checkpointing"),
        ({**FSDP, "use_cpu": True, "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}, "offload_params"),
    ],
)
def test_what_is_not_supported_is_refused_with_file_and_key(
    plain: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/accelerate.yaml: .*{expected.removeprefix('^')}"):
        read(tmp_path, plain)


def test_an_optimiser_of_whole_parameters_is_refused_where_they_are_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^training.optimiser: adamw_8bit is for whole parameters; with FSDP2"):
        read(tmp_path, FSDP, optimiser="adamw_8bit")
    assert read(tmp_path, {"num_processes": 3}, optimiser="adamw_8bit").processes == 3


def test_policies_of_images_are_trained_whole_and_a_safe_loser_in_one_process(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"

    def require(plain: dict[str, Any], *settings: str) -> None:
        file.write_text(yaml.safe_dump(plain))
        config = load_config([ROOT / "configs" / "images.yaml"], [f"accelerate={file}", *settings])
        require_launcher(config, read_launch(config))

    with pytest.raises(UserError, match=f"^{file}: distributed_type: FSDP2 shards a policy.*allowed: MULTI_GPU"):
        require(FSDP)
    require({"num_processes": 2})
    with pytest.raises(UserError, match=r"^training.score.loser.kind: safe, but .* has 2 processes.*allowed: weight"):
        require({"num_processes": 2}, "training.score.loser={kind: safe}")
    require({"num_processes": 1}, "training.score.loser={kind: safe}")


@pytest.mark.parametrize(("preset", "beside"), [("dpo", False), ("ganpo", True), ("sparsepo", True), ("kto", False)])
def test_deepspeed_trains_the_policy_alone(preset: str, beside: bool, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(ZERO))
    plain = run_config(file).model_dump() | {"loss": {"preset": preset}}
    if not beside:
        launch = read_launch(RunConfig.model_validate(plain))
        assert launch is not None and launch.zero is not None and launch.zero.stage == 2
        return
    with pytest.raises(UserError, match="DEEPSPEED trains only the policy, but this loss also trains heads or critics"):
        read_launch(RunConfig.model_validate(plain))


def test_deepspeed_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    launch = read(tmp_path, ZERO)
    with pytest.raises(UserError, match=r"needs deepspeed \(pip install 'prefloop\[deepspeed\]'\)"):
        require_launcher(run_config(tmp_path / "accelerate.yaml"), launch)
    require_launcher(run_config(tmp_path / "accelerate.yaml"), read(tmp_path, FSDP))


def test_mixed_precision_may_say_what_the_run_does(tmp_path: Path) -> None:
    assert read(tmp_path, {"mixed_precision": "bf16"}, dtype="bfloat16").mixed_precision == "bf16"


def test_zero_3_is_refused_with_the_lines_that_ask_for_the_same(tmp_path: Path) -> None:
    plain = {**ZERO, "deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"}}
    with pytest.raises(UserError) as refused:
        read(tmp_path, plain)
    lines = str(refused.value).splitlines()[1:]
    converted = read(tmp_path, {"num_processes": 2, **yaml.safe_load("\n".join(line.strip() for line in lines))})
    assert converted.kind == "FSDP2" and converted.sharding is not None and converted.sharding.offload


def test_each_machine_has_its_ranks(tmp_path: Path) -> None:
    read(tmp_path, {**TWO, "main_process_port": None})
    found = [read_launch(run_config(tmp_path / "accelerate.yaml"), machine) for machine in (None, 1)]
    first, second = (launch for launch in found if launch is not None)
    assert (first.ranks, second.ranks, first.port, second.machine) == (range(2), range(2, 4), 29500, 1)
    with pytest.raises(UserError, match="--machine-rank: 2, but num_machines is 2; allowed: 0 to 1"):
        read_launch(run_config(tmp_path / "accelerate.yaml"), 2)
    plain = run_config(tmp_path / "accelerate.yaml").model_dump() | {"accelerate": None}
    with pytest.raises(UserError, match="--machine-rank: 1, but the config has no accelerate file with num_machines"):
        read_launch(RunConfig.model_validate(plain), 1)


def test_rows_are_shared_by_a_divisor_of_the_processes(tmp_path: Path) -> None:
    assert read(tmp_path, {"num_processes": 4}, context_parallel=2).processes == 4
    words = r"training\.context_parallel: 3, but .* has num_processes: 4; allowed: divisors of that"
    with pytest.raises(UserError, match=words):
        read(tmp_path, {"num_processes": 4}, context_parallel=3)
    plain = run_config(tmp_path / "accelerate.yaml", context_parallel=2).model_dump() | {"accelerate": None}
    with pytest.raises(UserError, match=r"training\.context_parallel: 2, but training has one process; allowed: 1, or"):
        read_launch(RunConfig.model_validate(plain))


def test_the_interface_is_the_one_that_leads_to_machine_0() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    with pytest.raises(UserError, match=r"main_process_ip: nowhere\.invalid: "):
        interface_towards("nowhere.invalid")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot read"):
        read_launch(run_config(tmp_path / "no.yaml"))
