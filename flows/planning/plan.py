"""``prefloop plan``: what a config needs in memory, on disk and in time, and whether this machine has it."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from flows.planning.arithmetic import STATE_BYTES, ParameterCounts, Round, StageMemory, seconds
from flows.planning.counts import Tables, load_data, plan_round
from flows.planning.disk import DiskUse, disk_use, stored_weights
from flows.planning.machine import Room, room
from flows.planning.memory import stage_memories
from flows.planning.passes import PlannedPasses, planned_passes
from flows.planning.probe import model_shape
from flows.planning.rates.measured import measured_rates
from flows.planning.rates.suites import SuiteWork, suite_works
from flows.preflight.data import notes_on_prompts
from flows.preflight.loss_needs import check_needs
from flows.preflight.policy_weights import check_policy_weights
from flows.preflight.understand import understood
from flows.workers.local import stays_warm
from flows.workers.machines.cluster.placing import placing_lines
from flows.workers.pool.overlap import overlap_lines
from flows.workers.pool.seating import seating_of
from pipeline.config import DiffusionPolicy, PretrainedPolicy, RayCluster, RunConfig, ScratchDiffusion, ScratchPolicy
from pipeline.config.files import load_config
from pipeline.config.loss.needs import needs_of
from pipeline.errors import UserError
from pipeline.losses import load_preset
from pipeline.models.chat import Chat, load_chat
from pipeline.models.scratch import make_policy
from pipeline.safe_text import name_keys
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Message, derive_seed


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What a run of any modality needs, and what this machine has.

    Attributes:
        config: of the run.
        work: of one round, in tokens or passes, by kind.
        stages: memory of each stage, in the order in which they run.
        disk: of the run folder.
        rates: work a second by kind.
        rates_from: whether they were given or measured; None: no rates.
        room: of this machine.
        notes: what differs from the config.
    """

    config: RunConfig
    work: Mapping[str, float]
    stages: tuple[StageMemory, ...]
    disk: DiskUse
    rates: Mapping[str, float]
    rates_from: str | None
    room: Room
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> dict[str, int]:
        """Peak bytes by resource; ``device`` only on a machine that has one."""
        found = {"memory": max(stage.total(device=False) for stage in self.stages)}
        if self.room.device is not None:
            found["device"] = max(stage.total(device=True) for stage in self.stages)
        return {**found, "disk": self.disk.whole(self.config.rounds)}

    @property
    def fits(self) -> bool:
        """Whether there is room for everything."""
        free = asdict(self.room)
        return all(size <= free[name] for name, size in self.needed.items())

    @property
    def seconds(self) -> dict[str, float | None]:
        """Seconds of a round by kind of work; None where no rate is known."""
        return seconds(self.work, self.rates)

    def resources(self) -> dict[str, Any]:
        """Bytes, rates and seconds as JSON data."""
        return {
            "memory": {stage.stage: dict(stage.parts) for stage in self.stages},
            "disk": {**asdict(self.disk), "run": self.disk.whole(self.config.rounds)},
            "rates": dict(self.rates),
            "rates_from": self.rates_from,
            "seconds": self.seconds,
            "needed": self.needed,
            "available": asdict(self.room),
            "fits": self.fits,
            "notes": [*self.notes],
        }


@dataclass(frozen=True, kw_only=True)
class Plan(RunEstimate):
    """An estimate of a run of text, whose work is counted in tokens.

    Attributes:
        counts: of one round.
        parameters: of the policy.
        passes: how training will compute rows.
        suites: the work of standard evaluations, each time that they are measured; it is not in ``work``.
    """

    counts: Round
    parameters: ParameterCounts
    passes: PlannedPasses
    suites: tuple[SuiteWork, ...] = ()

    @property
    def placement(self) -> list[str]:
        """Who has which cards or cores, of a run that samples or has a cluster."""
        if isinstance(self.config.cluster, RayCluster):
            return placing_lines(self.config)
        if self.config.mode == "offline":
            return []
        return seating_of(self.config).lines(stay=stays_warm(self.config))

    def plain(self) -> dict[str, Any]:
        """The plan as JSON data: bytes, tokens, seconds."""
        return {
            "name": self.config.name,
            "rounds": self.config.rounds,
            "parameters": asdict(self.parameters),
            "passes": self.passes.plain(),
            "placement": self.placement,
            "overlap": overlap_lines(self.config),
            "round": {**asdict(self.counts), "tokens": self.work},
            "suites": [{**asdict(one), "seconds": one.seconds(self.rates)} for one in self.suites],
            **self.resources(),
        }


def plan_config(
    files: list[Path],
    settings: list[str],
    run_dir: Path | None,
    rates: Mapping[str, float],
    *,
    probe: bool,
    response_tokens: int | None,
) -> Plan:
    """Plan a config.

    Args:
        files, settings: as for ``run``.
        run_dir: where the run folder will be.
        rates: given tokens a second by kind of work.
        probe: measure the other rates.
        response_tokens: mean length of a sampled response; None: all have the greatest length allowed.

    Raises:
        UserError: a mistake in config or data.
        RunError: something could not be measured.
    """
    # Standard output holds only the plan, and a model that is thrown away needs no progress bar.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    config = load_config(files, settings)
    root = (run_dir or Path("runs") / config.name).resolve()
    config, _ = understood(RunFolder(root).carried(config), root)
    name_keys(config.model_dump(mode="json"))
    tables = load_data(config)
    check_policy_weights(config)
    check_needs(config, tables.contents)
    free = room(root)
    with tempfile.TemporaryDirectory(prefix="prefloop_plan_") as scratch:
        origin, revision = _origin(config, tables, Path(scratch))
        shape = model_shape(origin, "policy.path", revision=revision, trust_remote_code=config.trusts_policy)
        chat = load_chat(origin, config.chat, config.trusts_policy)
        planned = plan_round(config, tables, chat, shape, response_tokens)
        suites = tuple(suite_works(config, lambda text: _turn_length(chat, text)))
        passes = planned_passes(config, shape, planned, "cpu" if free.device is None else "cuda")
        planned = replace(planned, counts=replace(planned.counts, packing=passes.padded_because is None))
        stored = stored_weights(config, origin)
        stages, parameters, training = stage_memories(config, origin, shape, planned, load_preset("sft"), free)
        known, source = dict(rates), "given" if rates else None
        if probe:
            found = measured_rates(config, origin, shape, chat, tables.prompts, Path(scratch), skip=set(known))
            known = ({} if training is None else {"training": training}) | found | known
            source = "measured and given" if rates else "measured"
    disk = disk_use(
        planned.counts,
        parameters,
        made_start=config.warm_start is not None or isinstance(config.policy, ScratchPolicy),
        carried=config.training.optimiser_state == "carried",
        averaged=config.training.reference == "ema",
        checkpoints=config.training.checkpoint_every > 0,
        best=config.training.keeps_evaluated,
        iterative=config.mode == "iterative",
        # The best round's, the last ones, and a new one before an old one is removed.
        policies=None if config.retention.last is None else config.retention.last + 2,
        state_bytes=STATE_BYTES[config.training.optimiser],
        cached=config.training.reference_cache is not None,
        stored=stored,
        advantages=needs_of(config.loss).advantages,
    )
    return Plan(
        config=config,
        work=planned.counts.tokens(),
        counts=planned.counts,
        parameters=parameters,
        stages=stages,
        disk=disk,
        rates=known,
        rates_from=source,
        room=free,
        passes=passes,
        notes=tuple(notes_on_prompts(config, len(tables.prompts))),
        suites=suites,
    )


def _turn_length(chat: Chat, text: str) -> int:
    """Tokens of a conversation of one turn; a turn that the template refuses counts as none, since the run stops."""
    return len(chat.prompt_ids_if_written((Message("user", text),)) or ())


def _origin(config: RunConfig, tables: Tables, scratch: Path) -> tuple[str, str | None]:
    """The start policy's folder or hub name, and its revision; a policy that the run would make is made untrained."""
    match config.policy:
        case PretrainedPolicy():
            return config.policy.path, config.policy.revision
        case ScratchPolicy():
            texts = [t for p, text in tables.texts for t in (*(m.content for m in p.messages), text)]
            make_policy(texts, config.policy, derive_seed(config.seed, "init"), scratch / "policy")
            return str(scratch / "policy"), None
        case DiffusionPolicy() | ScratchDiffusion():
            raise UserError("modality: image: this plan counts tokens, and images have none; allowed: plan_images")
