"""Settings of a whole run."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.data.limits import Limits
from pipeline.config.data.mixture import MixtureData, usual_source
from pipeline.config.data.sources import Data, HeldOut, PairData
from pipeline.config.data.user_data import DatasetData, FileData
from pipeline.config.evaluation.gate import Evaluation, Gate
from pipeline.config.evaluation.suites import require_suites
from pipeline.config.images.policies import ScratchDiffusion
from pipeline.config.images.refusals import require_image_run, require_modality
from pipeline.config.labellers.reward_model import Discriminator
from pipeline.config.labellers.scorers import EnsembleScorer, Labelling, ScorerSettings
from pipeline.config.loss.presets import NamedComposition
from pipeline.config.machines import (
    BlockName,
    ClusterSettings,
    LocalCluster,
    Resources,
    Retention,
    TrackerKind,
    VariableName,
)
from pipeline.config.pairing import Pairing, Replay
from pipeline.config.policy import ChatSettings, Policy, PretrainedPolicy, ScratchPolicy
from pipeline.config.sampling import SamplerSettings, SamplingSettings, VllmSampler, require_mixture
from pipeline.config.training import Training, WarmStart


class RunConfig(Closed):
    """A whole run. iterative: sample, label, pair and train each round; offline: the pairs come from ``pairs``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="folder name under runs/")
    modality: Literal["text", "image"] = Field(
        "text", description="what the policy makes; image: a diffusion policy", json_schema_extra=LATER
    )
    mode: Literal["iterative", "offline"]
    rounds: int = Field(1, ge=1, le=1000, description="offline: slices of the pair data, one a round")
    seed: int = Field(0, ge=0)
    policy: Policy
    chat: ChatSettings = ChatSettings()
    prompts: Data | None = Field(
        None, description="iterative: prompts to answer (offline: held-out prompts, if other than the pairs')"
    )
    prompts_per_round: int | None = Field(
        None, ge=1, description="default: all of them every round; else the next slice, starting again at the end"
    )
    pairs: PairData | None = Field(
        None,
        description="offline: pairs, groups of scored responses, or single responses marked good or bad; "
        "iterative: the same, for replay.anchor",
    )
    held_out: HeldOut = HeldOut()
    limits: Limits = Limits()
    warm_start: WarmStart | None = None
    sampler: SamplerSettings = VllmSampler()
    sampling: SamplingSettings = SamplingSettings()
    shard_size: int = Field(256, ge=1, description="prompts sampled or labelled between two commits to disk")
    scorer: ScorerSettings | None = Field(
        None, description="labels responses, and held-out ones for evaluation; with a discriminator: gold"
    )
    labelling: Labelling = Labelling()
    discriminator: Discriminator | None = None
    pairing: Pairing = Pairing()
    replay: Replay | None = None
    loss: NamedComposition = Field(default_factory=lambda: NamedComposition.model_validate({}))
    training: Training = Training()
    placement: Literal["colocated", "split"] = Field(
        "colocated",
        description="colocated: engines and trainer have the same cards, in turn; split: engines keep cards of their "
        "own, and the trainer has the others",
        json_schema_extra=OPERATIONAL,
    )
    overlap: bool = Field(
        True,
        description="label finished shards of samples while the next ones are sampled, where labels come from a "
        "server, a function or other cards; false: one stage after the other",
        json_schema_extra=OPERATIONAL,
    )
    accelerate: str | None = Field(
        None,
        min_length=1,
        description="an accelerate config, which sets the number of training processes (DDP, FSDP2); default: one",
        json_schema_extra=OPERATIONAL,
    )
    cluster: ClusterSettings = Field(
        LocalCluster(),
        description="where engines, labellers' models and training processes run: local: this machine; ray: actors",
        json_schema_extra=OPERATIONAL,
    )
    resources: Resources = Field(
        Resources(),
        description="what runs share, by the names of Prefect's global concurrency limits",
        json_schema_extra=OPERATIONAL,
    )
    secrets: dict[VariableName, BlockName] = Field(
        {},
        description="environment variables that a run gets from Secret blocks of Prefect's server, by the blocks' "
        "names: {JUDGE_KEY: my-judge}; a variable that is set stays",
        json_schema_extra=OPERATIONAL,
    )
    evaluation: Evaluation = Evaluation()
    retention: Retention = Field(Retention(), json_schema_extra=OPERATIONAL)
    check_disk: bool = Field(
        True,
        description="refuse to start a stage if the disk lacks the space for it",
        json_schema_extra=OPERATIONAL,
    )
    trackers: tuple[TrackerKind, ...] = Field(
        (),
        description="trackers that also log steps and rounds, besides the run folder's own files; all stay in "
        "the run folder unless the environment names a server (WANDB_API_KEY, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID)",
        json_schema_extra=OPERATIONAL,
    )
    gate: Gate | None = Field(Gate(), description="null: every round is promoted")

    @property
    def trusts_policy(self) -> bool:
        """Whether code that ships with the policy may run."""
        return isinstance(self.policy, PretrainedPolicy) and self.policy.trust_remote_code

    @model_validator(mode="after")
    def _weights_can_be_trained(self) -> "RunConfig":
        if isinstance(self.policy, PretrainedPolicy):
            _require_trainable(self.policy, self.training, self.warm_start)
        return self

    @model_validator(mode="after")
    def _split_engines_stay(self) -> "RunConfig":
        if self.placement == "split" and self.sampler.keep_warm == "never":
            raise ValueError(
                "sampler.keep_warm: never, but with placement: split engines stay on their own cards; allowed: auto or "
                "always, or placement: colocated"
            )
        return self

    @model_validator(mode="after")
    def _mixture_can_be_drawn(self) -> "RunConfig":
        require_mixture(self.mode, self.sampler, self.sampling, trusted=self.trusts_policy)
        return self

    @model_validator(mode="before")
    @classmethod
    def _usual_kinds(cls, given: object) -> object:
        """Give each section without ``kind`` its usual kind."""
        if not isinstance(given, dict):
            return given
        usual = {"policy": "pretrained", "sampler": "vllm", "cluster": "local"}
        if given.get("modality") == "image":
            given = {"sampler": {}, **given}
            usual |= {"policy": "diffusion", "sampler": "diffusers"}
        filled = {
            name: {"kind": kind, **given[name]} for name, kind in usual.items() if isinstance(given.get(name), dict)
        }
        sources = {name: usual_source(given[name]) for name in ("prompts", "pairs") if name in given}
        return {**given, **filled, **sources}

    @field_validator("name")
    @classmethod
    def _no_dots(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("must not contain '..'")
        return value

    @model_validator(mode="after")
    def _kinds_fit_the_modality(self) -> "RunConfig":
        named: dict[str, Closed | None] = {"policy": self.policy, "sampler": self.sampler, "scorer": self.scorer}
        named |= {"prompts": self.prompts, "pairs": self.pairs}
        kinds = {name: str(section.__dict__["kind"]) for name, section in named.items() if section is not None}
        require_modality(self.modality, kinds)
        if self.modality == "image":
            require_image_run(self)
        return self

    @model_validator(mode="after")
    def _suites_fit(self) -> "RunConfig":
        rules = {} if self.gate is None else self.gate.suites
        require_suites(self.evaluation.suites, rules, self.modality, self.scorer is not None)
        name, data = ("pairs", self.pairs) if self.prompts is None else ("prompts", self.prompts)
        if self.evaluation.category is not None and not isinstance(data, FileData | DatasetData | MixtureData):
            kind = "null" if data is None else data.kind
            raise ValueError(
                f"evaluation.category: {self.evaluation.category!r} names a column, and {name}.kind: {kind} has none; "
                "allowed: null"
            )
        return self

    @model_validator(mode="after")
    def _source_is_named(self) -> "RunConfig":
        self.held_out.require_source(self.pairs if self.prompts is None else self.prompts)
        return self

    @model_validator(mode="after")
    def _mode_has_its_parts(self) -> "RunConfig":
        if self.mode == "iterative":
            if self.prompts is None:
                raise ValueError("prompts: iterative mode needs prompts to answer")
            two = self.pairing.second is not None
            if two and self.discriminator is not None:
                raise ValueError("discriminator: with pairing.rule: strong_weak nothing is labelled; allowed: null")
            if self.scorer is None and not two and (self.discriminator is None or self.discriminator.gold == "scorer"):
                raise ValueError("scorer: iterative mode needs a scorer to label responses")
            if self.sampling.n < 2 and not two:
                raise ValueError(f"sampling.n: {self.sampling.n} response a prompt makes no pair; at least 2")
            if self.sampling.temperature == 0:
                raise ValueError("sampling.temperature: 0 (greedy) makes all responses of a prompt equal; above 0")
            if self.training.evaluate_every:
                raise ValueError("training.evaluate_every: only offline mode has held-out pairs to evaluate")
        elif self.pairing.second is not None:
            raise ValueError("pairing.rule: strong_weak samples responses; offline mode has those of the data set")
        elif self.pairs is None:
            raise ValueError("pairs: offline mode needs a pair data set")
        elif self.training.lag:
            raise ValueError(f"training.lag: {self.training.lag}, but offline mode samples nothing; allowed: 0")
        elif self.discriminator is not None:
            raise ValueError("discriminator: offline mode labels nothing; only iterative mode has one")
        elif self.replay is not None:
            raise ValueError("replay: offline mode trains on the data set's own pairs; only iterative mode replays")
        anchored = self.replay is not None and self.replay.anchor > 0
        if self.training.turns == "all_chosen" and self.mode != "offline" and not anchored:
            raise ValueError(
                "training.turns: all_chosen reads pairs of a data set; sampled answers are one turn, so use last, mode "
                "offline or replay.anchor"
            )
        if self.replay is not None and self.replay.anchor > 0 and self.pairs is None:
            raise ValueError(f"replay.anchor: {self.replay.anchor:g}, but the section pairs names no data set")
        if self.pairing.max_disagreement is not None and not isinstance(self.scorer, EnsembleScorer):
            raise ValueError("pairing.max_disagreement: only scorer.kind ensemble has labellers that could disagree")
        if isinstance(self.policy, ScratchPolicy | ScratchDiffusion) and self.warm_start is None:
            raise ValueError("warm_start: a policy made from scratch needs one")
        if self.warm_start is not None and self.prompts is None:
            raise ValueError("prompts: the warm start trains on the prompt data's reference responses")
        return self


def _require_trainable(policy: PretrainedPolicy, training: Training, warm_start: WarmStart | None) -> None:
    """Raise ``ValueError`` if ``policy``'s weights cannot be trained as the other two sections ask."""
    lora, held = training.lora, policy.quantisation
    if held is not None and lora is None:
        raise ValueError(
            f"policy.quantisation.bits: {held.bits}, but full training (training.lora: null) cannot step quantised "
            "weights; allowed: a section training.lora, or policy.quantisation: null"
        )
    if held is not None and lora is not None and lora.lifetime == "round":
        raise ValueError(
            f"training.lora.lifetime: round merges each adapter into the weights, and {held.bits} bits would round it "
            "away; allowed with policy.quantisation: run"
        )
    if policy.adapter is not None and (lora is None or lora.lifetime == "round"):
        given = "null" if lora is None else "round"
        field = "training.lora" if lora is None else "training.lora.lifetime"
        raise ValueError(
            f"{field}: {given}, but policy.adapter is trained on over all rounds; allowed with it: a section "
            "training.lora, with lifetime: run"
        )
    if warm_start is not None and (held is not None or policy.adapter is not None):
        field = "policy.quantisation" if held is not None else "policy.adapter"
        raise ValueError(
            f"warm_start: trains all weights of the policy, but {field} keeps them; allowed: warm_start: null"
        )
    if lora is None and policy.dtype in ("bfloat16", "float16") and training.dtype == "float32":
        raise ValueError(
            f"training.dtype: float32, but policy.dtype: {policy.dtype} computes a reference in 16 bits, so that full "
            "training would not start at it; allowed: training.dtype: bfloat16, or policy.dtype: auto or float32"
        )
