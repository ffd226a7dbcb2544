"""Facts about one round as plain data, for the report, the terminal, artefacts and model cards.

Torch-free. Every part is None or empty if the round does not have it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.report.charts import Histogram
from pipeline.training.step_log import StepReport
from pipeline.training.watch.held_out import HeldOutLine


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and, if known, its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class PairFacts:
    """The round's training data.

    Attributes:
        kind: ``pair``, ``group`` or ``unpaired``.
        rows: number of rows, including replayed and anchor rows; ``own`` of them are the round's own.
        dropped: number of candidates dropped, by cause; causes that dropped nothing are left out.
        margins: score differences of own pairs, or of the best and the worst response of own groups.
        margin: their mean; None without scores.
        dispersion: −log Hn of each example, if the loss scales by it (MallowsPO, arXiv:2405.14953).
    """

    kind: str
    rows: int
    own: int
    dropped: Mapping[str, int]
    margins: Histogram
    margin: float | None
    dispersion: Histogram


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """Counts and cost of a stage's labels (labels, gold, evaluation, suites, gate).

    Attributes:
        stage: the stage's name.
        missing: responses without a score.
        missing_by_cause: questions without an answer, by cause; ``said_by_cause``: what the server said first.
        broken: texts that spelled control tokens of a reward model, which read them as plain text.
        questions: asked or taken from the cache; ``cache_hit_rate`` is the share of the latter.
        calls, prompt_tokens, completion_tokens, cost: to paid labellers; cost in the currency of the config's prices.
        orders_that_disagree: share of pairs asked in both orders whose answers name different winners.
        disagreement: mean deviation of an ensemble's scores; ``criteria``: mean and number of scores by criterion.
    """

    stage: str
    missing: int | None = None
    missing_by_cause: Mapping[str, int] = field(default_factory=dict)
    questions: int | None = None
    cache_hit_rate: float | None = None
    calls: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    orders_that_disagree: float | None = None
    disagreement: float | None = None
    said_by_cause: Mapping[str, str] = field(default_factory=dict)
    broken: int = 0
    criteria: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiscriminatorFacts:
    """The round's refitted discriminator (D2PO, arXiv:2405.01511).

    Attributes:
        bought: gold comparisons of all rounds so far.
        gold, silver: prompts of the round with a gold or a silver label.
        accuracy: on held-out gold; ``previous_accuracy``: of the previous version on the same gold.
        fresh_accuracy: of the previous version on this round's gold, which it has not seen.
        why_not: why it does not label; None if it does.
    """

    bought: int | None
    gold: int | None
    silver: int | None
    accuracy: float | None
    previous_accuracy: float | None
    fresh_accuracy: float | None
    why_not: str | None


# Load of a layer's busiest expert, over the mean, from which readers are told.
UNEVEN = 3.0


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """The round's training.

    Attributes:
        metrics, steps: those of ``TrainResult``, and one report per step.
        alarms, held_out: in words, in the order in which they were raised; evaluations while it was trained.
        kept_step: the step whose weights are the round's policy; 0: the policy that training started from.
        ended_because: why it ended early; None: it did not.
        passes: how rows were computed, why, and what it cost, in words.
    """

    metrics: Mapping[str, float]
    steps: tuple[StepReport, ...]
    alarms: tuple[str, ...] = ()
    held_out: tuple[HeldOutLine, ...] = ()
    kept_step: int | None = None
    ended_because: str | None = None
    passes: str | None = None

    def notices(self) -> tuple[str, ...]:
        """What a reader must know of how it went: alarms, an early end, and weights that are not the last."""
        told = [*self.alarms]
        if self.ended_because is not None:
            told.append(f"training ended at step {len(self.steps)}: {self.ended_because}")
        if self.kept_step is not None and self.kept_step < len(self.steps):
            kept = f"of step {self.kept_step}" if self.kept_step else "that training started from"
            told.append(f"the round's policy has the weights {kept}, not those of step {len(self.steps)}")
        return (*told, *self._uneven())

    def _uneven(self) -> Iterator[str]:
        """What the last step tells of a mixture of experts that hardly uses some of them."""
        last = self.steps[-1] if self.steps else None
        if last is None or last.expert_shares is None or last.expert_imbalance is None:
            return
        unused = [str(expert) for expert, share in enumerate(last.expert_shares) if share == 0]
        if unused:
            shown = ", ".join(unused[:8]) + (" ..." if unused[8:] else "")
            yield f"no token of the last step chose {len(unused)} of {len(last.expert_shares)} experts: {shown}"
        if last.expert_imbalance >= UNEVEN:
            yield f"the busiest expert has {last.expert_imbalance:.3g} times the mean load of its layer"

    def metric(self, name: str) -> float | None:
        """The metric ``name``, or None."""
        return self.metrics.get(name)


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A complete stage. ``tokens``: sampled, or read in training; ``rate``: tokens (else rows) a second.

    ``memory``: peak bytes by place: ``process`` (resident, all its processes) and ``device``; empty if not known.
    """

    name: str
    rows: int
    seconds: float
    tokens: int | None
    rate: float | None
    memory: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GateFacts:
    """The gate's decision after the round, and its reasons. ``measures``: what the decision is based on, as written.

    ``answer``: what a person decided after a pause or a stop; None: no answer yet, or none needed.
    """

    decision: str
    reasons: tuple[str, ...]
    best_round: int | None
    measures: Mapping[str, Any]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class SampleComparison:
    """A held-out prompt with the greedy responses of the start policy and of the round's policy, and their scores."""

    prompt: str
    before: str
    before_score: float | None
    after: str
    after_score: float | None


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """One round.

    Attributes:
        round: 0 is the policy before preference training.
        metrics: the evaluation's metrics.json; empty if the round is not evaluated. The next fields come from it.
        reward: mean over sampled responses to held-out prompts; ``reward_greedy`` of greedy ones.
        win_rate_vs_start, win_rate_vs_previous: share of comparisons won, ties half.
        kl_to_start, kl_to_previous: nats per token, on the round's own samples.
        response_length: mean tokens; ``stop_rate``: share of responses that ended by themselves.
        sampler_trainer_gap: mean absolute difference of a token's log-prob between the engine and the trainer, nats.
        stages: complete stages, in the order in which they run.
        labels: one for each stage that labelled.
        comparisons: a few held-out prompts; empty for round 0.
    """

    round: int
    metrics: Mapping[str, Any]
    reward: float | None
    reward_greedy: float | None
    win_rate_vs_start: Estimate | None
    win_rate_vs_previous: Estimate | None
    kl_to_start: float | None
    kl_to_previous: float | None
    response_length: float | None
    stop_rate: float | None
    sampler_trainer_gap: float | None
    pairs: PairFacts | None
    labels: tuple[LabelFacts, ...]
    discriminator: DiscriminatorFacts | None
    training: TrainingFacts | None
    gate: GateFacts | None
    stages: tuple[StageFacts, ...]
    comparisons: tuple[SampleComparison, ...]

    def measured(self, name: str) -> float | None:
        """A number from the evaluation, or else from the gate."""
        for source in self._sources():
            value = source.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of ``measured``, if there is one."""
        for source in self._sources():
            bounds = source.get(f"{name}_ci")
            if source.get(name) is not None and bounds:
                return float(bounds[0]), float(bounds[1])
        return None

    def _sources(self) -> tuple[Mapping[str, Any], ...]:
        return (self.metrics,) if self.gate is None else (self.metrics, self.gate.measures)

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def label_cost(self) -> float:
        """Cost of the labels, in the currency of the config's prices."""
        return sum(labels.cost for labels in self.labels)


def estimate(metrics: Mapping[str, Any], name: str) -> Estimate | None:
    """The metric ``name`` with its interval ``NAME_ci``, if there is one."""
    mean, bounds = metrics.get(name), metrics.get(f"{name}_ci") or (None, None)
    return None if mean is None else Estimate(float(mean), *bounds)


def label_facts(stage: str, metrics: Mapping[str, Any]) -> LabelFacts:
    """Label facts from the metrics in a stage's manifest (``reward_models.answers.accounts.summary``)."""
    return LabelFacts(
        stage=stage,
        missing=metrics.get("missing_labels"),
        missing_by_cause=metrics.get("missing_by_cause") or {},
        said_by_cause=metrics.get("said_by_cause") or {},
        broken=(metrics.get("broken_conversations") or 0) + (metrics.get("broken_texts") or 0),
        questions=metrics.get("questions"),
        cache_hit_rate=metrics.get("cache_hit_rate"),
        **{name: metrics.get(name) or 0 for name in ("calls", "failed_calls", "prompt_tokens", "completion_tokens")},
        cost=metrics.get("cost") or 0.0,
        orders_that_disagree=metrics.get("orders_that_disagree"),
        disagreement=metrics.get("disagreement"),
        criteria=metrics.get("criteria") or {},
    )


def cell(value: float | None, form: str) -> str:
    """``value`` in its format, or a dash for None."""
    return "–" if value is None else form.format(value)
