"""What an accelerate config says of training, and what of it is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.launch import Launch, read_launch
from pipeline.types import UserError

ROOT = Path(__file__).parents[2]
FSDP: dict[str, Any] = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}


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
    assert (launch.sharding is not None) == (launch.kind == "FSDP2") == (file.stem == "fsdp2")


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
        ({"distributed_type": "DEEPSPEED"}, "distributed_type: DEEPSPEED is not supported; FSDP"),
        ({"num_machines": 2}, "num_machines: .*not 2"),
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


def test_mixed_precision_may_say_what_the_run_does(tmp_path: Path) -> None:
    assert read(tmp_path, {"mixed_precision": "bf16"}, dtype="bfloat16").mixed_precision == "bf16"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot read"):
        read_launch(run_config(tmp_path / "no.yaml"))
