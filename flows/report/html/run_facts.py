"""Facts that a page shows about one run: its rounds, and responses of several rounds to the same held-out prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flows.report.facts import RoundFacts
from flows.report.findings.verdicts import GateLimit
from flows.report.findings.worse import WorsePrompts
from flows.report.html.pictures.shown import RoundPictures


@dataclass(frozen=True, slots=True)
class Sample:
    """Greedy responses to one held-out prompt: round -> text and score, which is None if the labeller gave none."""

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
        name: from the config; made unique if the page has several runs.
        config: the resolved config as YAML; ``settings`` is all of it as ``a.b`` -> value.
        given: the settings that are not at their defaults.
        limits: of the gate.
        headline: the main settings in a few words: mode, loss, reference and so on.
        rounds: those in the run folder, ascending.
        planned: the number of rounds in the config, without round 0.
        versions: of the packages that made the stages.
        worse: held-out prompts that got worse by the newest evaluated round.
        finished: when the newest stage was complete, UTC.
        pictures: of rounds of images, what is shown of each.
    """

    name: str
    config: str
    settings: Mapping[str, str]
    given: frozenset[str]
    limits: tuple[GateLimit, ...]
    headline: str
    rounds: tuple[RoundFacts, ...]
    planned: int
    versions: Mapping[str, str]
    finished: str
    samples: Samples
    worse: WorsePrompts | None = None
    pictures: Mapping[int, RoundPictures] = field(default_factory=dict)

    @property
    def evaluated(self) -> tuple[RoundFacts, ...]:
        """The rounds with an evaluation."""
        return tuple(facts for facts in self.rounds if facts.metrics)

    @property
    def trained(self) -> tuple[RoundFacts, ...]:
        """The rounds with preference training."""
        return tuple(facts for facts in self.rounds if facts.round > 0 and facts.training is not None)
