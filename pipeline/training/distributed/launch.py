"""The number of training processes and how they share the work, from an accelerate config. Torch-free.

``accelerate config`` writes these files; their other settings (rendezvous backend, how to save) are not read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipeline.config import Optimisation, PretrainedPolicy, RunConfig
from pipeline.config.files import read_yaml
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import Training
from pipeline.errors import UserError

_Kind = Literal["DDP", "FSDP2", "DeepSpeed"]
_KINDS: dict[str, _Kind] = {
    "NO": "DDP",
    "MULTI_CPU": "DDP",
    "MULTI_GPU": "DDP",
    "FSDP": "FSDP2",
    "DEEPSPEED": "DeepSpeed",
}

# The share of a device's memory that whole sums of gradients may take if nothing is said.
WHOLE_SUMS = 0.25
# Weights of 16 bits that are stepped at a time, in float32: a tensor with more is stepped in slices. A multiple of the
# blocks of 256 in which moments of 8 bits are scaled.
STEP_SLICE = 1 << 24


class _Section(BaseModel):
    # accelerate's files hold many more keys, and each version adds some.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Sharding(_Section):
    """``fsdp_config``: how weights, gradients and optimiser state are sharded over the processes (FSDP2).

    Attributes:
        version: of FSDP.
        policy: one unit per decoder layer, or the whole model as one.
        layers: class names of decoder layers, comma-separated; None: those that transformers names.
        reshard: free a layer's gathered weights after its forward pass.
        offload: weights, gradients and optimiser state live in CPU memory.
        recomputes: accelerate's own gradient checkpointing.
    """

    version: Literal[2] = Field(alias="fsdp_version")
    policy: Literal["TRANSFORMER_BASED_WRAP", "NO_WRAP"] = Field(
        "TRANSFORMER_BASED_WRAP", alias="fsdp_auto_wrap_policy"
    )
    layers: str | None = Field(None, alias="fsdp_transformer_layer_cls_to_wrap")
    reshard: bool = Field(True, alias="fsdp_reshard_after_forward")
    offload: bool = Field(False, alias="fsdp_offload_params")
    recomputes: bool = Field(False, alias="fsdp_activation_checkpointing")


class Zero(_Section):
    """``deepspeed_config``: which optimiser data is sharded over the processes (ZeRO).

    The number of accumulation steps is not read: ``training.batch_size`` and the micro-batches decide.

    Attributes:
        stage: 1: the optimiser's state; 2: gradients too.
        offload: where the state lives and is stepped.
        offload_weights: only of stage 3.
        max_grad_norm: must agree with ``training.max_grad_norm``, which decides.
        file: DeepSpeed's own settings, which are not read.
    """

    stage: Literal[1, 2] = Field(2, alias="zero_stage")
    offload: Literal["none", "cpu"] = Field("none", alias="offload_optimizer_device")
    offload_weights: Literal["none"] = Field("none", alias="offload_param_device")
    max_grad_norm: float | Literal["auto"] = Field("auto", alias="gradient_clipping")
    file: None = Field(None, alias="deepspeed_config_file")


@dataclass(frozen=True)
class Placement:
    """A training process's place among those that train together.

    Attributes:
        accelerator: accelerate's ``Accelerator``; typed ``Any``, because importing it imports torch.
        sharding: how weights or optimiser state are sharded over the processes; None: each holds all.
    """

    accelerator: Any
    sharding: Sharding | Zero | None = None


class Launch(_Section):
    """Training settings from an accelerate config.

    Attributes:
        kind: what averages gradients, and which part of a model each process holds.
        processes: number of processes, on all machines together.
        machines: number of machines, with equally many processes.
        machine: rank of this machine, from 0; the run is driven from the machine of rank 0.
        address: of the machine of rank 0, as the others reach it; without other machines, not read.
        port: on which the machine of rank 0 waits for the others.
        cpu: whether they compute on the CPU and communicate over gloo.
        devices: numbers of the accelerators to use among those that this process sees, comma-separated, or "all".
        mixed_precision: accelerate's own autocast, which is not used: ``training.dtype`` decides.
        sharding: with FSDP2.
        zero: with DeepSpeed.
    """

    kind: _Kind = Field("DDP", alias="distributed_type")
    processes: int = Field(1, ge=1, alias="num_processes")
    machines: int = Field(1, ge=1, alias="num_machines")
    machine: int = Field(0, ge=0, alias="machine_rank")
    address: str | None = Field(None, min_length=1, alias="main_process_ip")
    port: int = Field(29500, ge=1, le=65535, alias="main_process_port")
    cpu: bool = Field(False, alias="use_cpu")
    devices: str = Field("all", alias="gpu_ids", coerce_numbers_to_str=True)
    mixed_precision: Literal["no", "bf16", "fp16", "fp8"] = "no"
    sharding: Sharding | None = Field(None, alias="fsdp_config")
    zero: Zero | None = Field(None, alias="deepspeed_config")

    @property
    def on_each(self) -> int:
        """Number of processes on each machine."""
        return self.processes // self.machines

    @property
    def ranks(self) -> range:
        """Ranks of this machine's processes."""
        return range(self.machine * self.on_each, (self.machine + 1) * self.on_each)


def read_launch(config: RunConfig, machine: int | None = None) -> Launch | None:
    """Read the launch that ``config.accelerate`` names; None: one process.

    ``machine``: rank of this machine; None: that of the file.

    Raises:
        UserError: no such file, it needs something unsupported, or it does not fit the training settings.
    """
    if config.accelerate is None:
        if config.training.context_parallel > 1:
            raise UserError(
                f"training.context_parallel: {config.training.context_parallel}, but training has one process; "
                "allowed: 1, or accelerate: FILE with a multiple of it as num_processes"
            )
        if machine is not None:
            raise UserError(f"--machine-rank: {machine}, but the config has no accelerate file with num_machines")
        return None
    file = Path(config.accelerate)
    launch = _read(file, machine)
    for section, settings in (("training", config.training), ("warm_start", config.warm_start)):
        if settings is not None:
            _require_fit(file, launch, section, settings)
    held = config.policy.quantisation if isinstance(config.policy, PretrainedPolicy) else None
    if held is not None and launch.kind != "DDP":
        raise UserError(
            f"policy.quantisation.bits: {held.bits}, but {file}: distributed_type: {launch.kind} shards weights, which "
            "quantised ones cannot be; allowed with it: MULTI_GPU or MULTI_CPU, or policy.quantisation: null"
        )
    if config.training.reference_sync is not None and launch.kind != "DDP":
        raise UserError(
            f"training.reference_sync: a moving reference is whole in each process, but {file}: distributed_type: "
            f"{launch.kind} shards weights or their state; allowed with it: MULTI_GPU or MULTI_CPU"
        )
    if launch.zero is not None and needs_of(config.loss).auxiliary:
        raise UserError(
            f"{file}: distributed_type: DEEPSPEED trains only the policy, but this loss also trains heads or critics; "
            "use MULTI_GPU, or FSDP with fsdp_version: 2"
        )
    return launch


def reduced_once(settings: Optimisation, gradient_bytes: int, card_bytes: int) -> bool:
    """Whether FSDP2 reduces the gradients of a step's passes together, so that each process holds whole sums of them.

    Args:
        settings: of the training.
        gradient_bytes: of the whole model's float32 gradients.
        card_bytes: memory of one process's device.
    """
    if settings.gradient_sync == "auto":
        return gradient_bytes <= WHOLE_SUMS * card_bytes
    return settings.gradient_sync == "step"


def context_parallel(settings: Optimisation) -> int:
    """Return the number of processes that compute each row together."""
    return settings.context_parallel if isinstance(settings, Training) else 1


def _read(file: Path, machine: int | None) -> Launch:
    plain = read_yaml(file)
    named = plain.get("distributed_type", "NO")
    # YAML reads a bare NO, which accelerate writes, as false.
    named = "NO" if named is False else named
    if not isinstance(named, str) or named not in _KINDS:
        raise UserError(f"{file}: distributed_type: must be one of {', '.join(_KINDS)}, not {named!r}")
    cpu = plain.get("use_cpu", False) or named == "MULTI_CPU"
    given: dict[str, JsonValue] = {**plain, "distributed_type": _KINDS[named], "use_cpu": cpu}
    if given.get("mixed_precision") is False:
        given["mixed_precision"] = "no"
    # A file for one kind may still hold the section of another.
    if _KINDS[named] != "FSDP2":
        given["fsdp_config"] = None
    if _KINDS[named] != "DeepSpeed":
        given["deepspeed_config"] = None
    _refuse_zero3(file, given.get("deepspeed_config"))
    try:
        launch = Launch.model_validate({name: v for name, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {place}: {first['msg']}, not {first['input']!r}") from None
    _require_supported(file, launch)
    asked = "machine_rank" if machine is None else "--machine-rank"
    launch = launch if machine is None else launch.model_copy(update={"machine": machine})
    if not 0 <= launch.machine < launch.machines:
        raise UserError(
            f"{file}: {asked}: {launch.machine}, but num_machines is {launch.machines}; allowed: 0 to "
            f"{launch.machines - 1}, each on one machine"
        )
    return launch


def _refuse_zero3(file: Path, section: JsonValue) -> None:
    """Refuse ZeRO-3 with the lines that ask FSDP2 for the same."""
    if not isinstance(section, dict) or section.get("zero_stage") != 3:
        return
    offload = "cpu" in (section.get("offload_param_device"), section.get("offload_optimizer_device"))
    raise UserError(
        f"{file}: deepspeed_config.zero_stage: 3 is not read; allowed: 1, 2. FSDP2 shards the same (weights, "
        "gradients, optimiser state); in place of distributed_type: DEEPSPEED and deepspeed_config write\n"
        "  distributed_type: FSDP\n"
        f"  fsdp_config: {{fsdp_version: 2, fsdp_offload_params: {str(offload).lower()}}}"
    )


def _require_supported(file: Path, launch: Launch) -> None:
    if launch.kind == "DeepSpeed" and launch.zero is None:
        raise UserError(f"{file}: deepspeed_config: missing, with zero_stage: 1 or 2")
    if launch.zero is not None and launch.processes == 1:
        raise UserError(f"{file}: num_processes: must be 2 or more with DEEPSPEED: one process has nothing to share")
    if launch.cpu and launch.zero is not None and launch.zero.offload != "none":
        raise UserError(f"{file}: deepspeed_config.offload_optimizer_device: must be none with use_cpu")
    if launch.kind == "FSDP2" and launch.sharding is None:
        raise UserError(f"{file}: fsdp_config: missing, with fsdp_version: 2")
    if launch.sharding is not None and launch.sharding.recomputes:
        raise UserError(
            f"{file}: fsdp_config.fsdp_activation_checkpointing: must be false; set training.gradient_checkpointing"
        )
    if launch.cpu and launch.sharding is not None and launch.sharding.offload:
        raise UserError(
            f"{file}: fsdp_config.fsdp_offload_params: must be false with use_cpu: there is nothing to offload"
        )
    if launch.processes % launch.machines:
        raise UserError(
            f"{file}: num_processes: {launch.processes} is not a multiple of num_machines: {launch.machines}; it "
            "counts the processes of all machines, and each has as many"
        )
    if launch.machines > 1 and launch.address is None:
        raise UserError(
            f"{file}: main_process_ip: missing, but num_machines is {launch.machines}; allowed: the address of the "
            "machine of rank 0, as the others reach it"
        )


def _require_fit(file: Path, launch: Launch, section: str, settings: Optimisation) -> None:
    wanted = "bf16" if settings.dtype == "bfloat16" else "no"
    if launch.mixed_precision not in ("no", wanted):
        raise UserError(
            f"{file}: mixed_precision: {launch.mixed_precision}, but {section}.dtype is {settings.dtype}, which "
            f"decides; make them the same, or write mixed_precision: 'no'"
        )
    if launch.processes % context_parallel(settings):
        raise UserError(
            f"{section}.context_parallel: {context_parallel(settings)}, but {file} has num_processes: "
            f"{launch.processes}; allowed: divisors of that"
        )
    if launch.zero is not None and launch.zero.max_grad_norm not in ("auto", settings.max_grad_norm):
        raise UserError(
            f"{file}: deepspeed_config.gradient_clipping: {launch.zero.max_grad_norm:g}, but {section}.max_grad_norm "
            f"is {settings.max_grad_norm:g}, which decides; make them the same, or write gradient_clipping: auto"
        )
    if launch.processes > 1 and isinstance(settings, Training) and settings.weights == "bfloat16":
        raise UserError(
            f"{section}.weights: bfloat16 is for one process, but {file} asks for {launch.processes}; allowed with it: "
            "float32, which FSDP2 shards (distributed_type: FSDP)"
        )
    if launch.kind != "DDP" and settings.optimiser != "adamw":
        raise UserError(
            f"{section}.optimiser: {settings.optimiser} is for whole parameters; with {launch.kind} ({file}) it must "
            "be adamw, whose state is sharded"
        )
