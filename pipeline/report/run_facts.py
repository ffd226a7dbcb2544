"""What a page tells of one run: its rounds, and responses of several rounds to the same held-out prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.round_facts import RoundFacts


@dataclass(frozen=True, slots=True)
class Sample:
    """Greedy responses to one held-out prompt: round -> text and score, None where the labeller gave none."""

    prompt: str
    responses: Mapping[int, tuple[str, float | None]]


@dataclass(frozen=True, slots=True)
class Samples:
    """The first ``samples`` of ``prompts`` held-out prompts."""

    samples: tuple[Sample, ...]
    prompts: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run.

    Attributes:
        name: of the config; made different from the others' where several are shown.
        config: the resolved config as YAML; ``settings`` is all of it as ``a.b`` -> value.
        headline: what decides the run in a few words: mode, loss, reference and so on.
        rounds: those that are there, ascending.
        planned: how many rounds the config has, round 0 left out.
        versions: packages that made the stages.
        finished: when the newest stage was complete, UTC.
    """

    name: str
    config: str
    settings: Mapping[str, str]
    headline: str
    rounds: tuple[RoundFacts, ...]
    planned: int
    versions: Mapping[str, str]
    finished: str
    samples: Samples

    @property
    def evaluated(self) -> tuple[RoundFacts, ...]:
        """The rounds with an evaluation."""
        return tuple(facts for facts in self.rounds if facts.metrics)

    @property
    def trained(self) -> tuple[RoundFacts, ...]:
        """The rounds of preference training that were trained."""
        return tuple(facts for facts in self.rounds if facts.round > 0 and facts.training is not None)


def measured(facts: RoundFacts, name: str) -> float | None:
    """A number of the evaluation, or else of the gate."""
    for source in (facts.metrics, facts.gate.measures if facts.gate is not None else {}):
        value = source.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def interval(facts: RoundFacts, name: str) -> tuple[float, float] | None:
    """The 95 % interval of ``measured``, where there is one."""
    for source in (facts.metrics, facts.gate.measures if facts.gate is not None else {}):
        bounds = source.get(f"{name}_ci")
        if source.get(name) is not None and bounds:
            return float(bounds[0]), float(bounds[1])
    return None
