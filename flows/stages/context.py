"""The stages of a run: load the inputs, call the core, commit. No Prefect."""

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from flows.report.progress import Report, silent
from flows.run_folder.stage_keys import stage_key
from flows.workers.messages import NextShard
from pipeline.config import PretrainedPolicy, RunConfig
from pipeline.models.chat import Chat, load_chat
from pipeline.models.foreign import load_tokenizer
from pipeline.models.rendering.template import Rendering, own_template
from pipeline.models.weights.adapter_folder import base_of
from pipeline.models.weights.weight_format import (
    FLOAT32,
    Precision,
    WeightFormat,
    frozen_format,
    held_as_stored,
    stored_dtype,
)
from pipeline.storage.integrity import POINTER
from pipeline.storage.rows import read_preference_rows, write_preferences
from pipeline.storage.run_folder import RunFolder, Stage
from pipeline.training.distributed.launch import Placement


def _unheard(shard: NextShard) -> None:
    """Tell nobody of a finished shard."""


@dataclass(frozen=True)
class Context:
    """Inputs of every stage: the run, its config, and the function that reports progress.

    Attributes:
        placement: this process's place among those that train together; None if it trains alone.
        together: opens a block in which all training processes compute passes without gradient, led by this one; None
            if it computes alone.
        on_shard: called with each finished shard of samples, in order.
        shards: those of a stage that is still being made and that this one reads by shard; None: it is complete.
    """

    run: RunFolder
    config: RunConfig
    report: Report = field(default=silent)
    placement: Placement | None = None
    together: Callable[[], AbstractContextManager[Placement]] | None = None
    on_shard: Callable[[NextShard], None] = field(default=_unheard)
    shards: Iterable[NextShard] | None = None

    @property
    def writes(self) -> bool:
        """Whether this process writes."""
        return self.placement is None or bool(self.placement.accelerator.is_main_process)

    def wait_for_everyone(self) -> None:
        """Wait until all processes that train together are here."""
        if self.placement is not None:
            self.placement.accelerator.wait_for_everyone()

    def policy_path(self, round_: int) -> Path:
        """The folder of a round's policy: a model or adapter in the run folder, or the user's own untrained model."""
        return self.model_path(self.run.stage(round_, "policy"))

    def model_path(self, stage: Stage) -> Path:
        """The model folder of a policy or average stage, or the folder that it points to."""
        pointer = stage.require().metrics.get(POINTER)
        return Path(str(pointer)) if pointer else stage.folder

    @property
    def held(self) -> WeightFormat:
        """How weights of the run's policies that are not trained are held."""
        return frozen_format(self.config, self.policy_path(0) if held_as_stored(self.config) else "")

    @property
    def precision(self) -> Precision:
        """Of matrix products, in training and in scoring."""
        return self.held.passes(self.config.training.dtype)

    def held_as(self, model: str) -> WeightFormat:
        """How a reference is held: the run's own policies as such, others in the precision of their files or passes."""
        own = self.run.root.absolute() in Path(model).absolute().parents or model == str(self.policy_path(0))
        policy, held = self.config.policy, self.held
        if own:
            return held
        if isinstance(policy, PretrainedPolicy) and policy.dtype != "auto":
            return WeightFormat(policy.dtype)
        return FLOAT32 if self.precision == "float32" else WeightFormat(stored_dtype(base_of(model)))

    def trusts(self, model: str | Path) -> bool:
        """Whether code in ``model`` may run: only if the config trusts the policy, and only its or the run's own."""
        policy = self.config.policy
        if not isinstance(policy, PretrainedPolicy) or not self.config.trusts_policy:
            return False
        ours = self.run.root.absolute() in Path(model).absolute().parents
        return ours or str(model) == policy.path or str(model) == str(self.policy_path(0))


@dataclass(frozen=True)
class Outcome:
    """Result of a stage's body: rows written, and metrics for the manifest."""

    rows: int
    metrics: dict[str, JsonValue] = field(default_factory=dict)


def needed(context: Context, round_: int, name: str) -> bool:
    """Whether the stage still has to run. Raises ``UserError`` if it exists under another key."""
    return not context.run.stage(round_, name).complete(stage_key(context.run, context.config, round_, name))


def offending_file(context: Context, title: str) -> Path:
    """The file for the rows that stopped the stage ``title`` (``round_001/samples``); creates its folder."""
    folder = context.run.root / "offending"
    folder.mkdir(exist_ok=True)
    return folder / f"{title.replace('/', '_')}.parquet"


def keep_rows(context: Context, round_: int, ids: Collection[str], file: Path) -> None:
    """Write to ``file`` the rows of ``ids`` that the round trains on."""
    wanted = set(ids)
    preferences = read_preference_rows(context.run.stage(round_, "pairs").folder)
    write_preferences(file, (row for row in preferences if row.id in wanted))


def policy_rendering(config: RunConfig) -> Rendering | None:
    """What the policy's chat template is given, for reward models that have the same one; None if nothing."""
    chat, policy = config.chat, config.policy
    if not chat.rerendered:
        return None
    tokenizer = (
        load_tokenizer(policy.path, trust_remote_code=config.trusts_policy)
        if isinstance(policy, PretrainedPolicy)
        else None
    )
    own = "" if tokenizer is None else own_template(tokenizer)
    return Rendering(chat.template_kwargs, chat.template_file, own)


def policy_chat(config: RunConfig, policy: Path) -> Chat:
    """The chat of a policy's folder, or of the model under an adapter's, with the run's settings."""
    return load_chat(base_of(policy), config.chat, config.trusts_policy)
