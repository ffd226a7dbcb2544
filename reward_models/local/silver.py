"""Labels by models of the run itself: a policy's own implicit reward, and discriminators."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline.config import ClassifierScorer, Quantisation
from pipeline.models.rendering.template import Rendering
from pipeline.models.weights.weight_format import FLOAT32, Precision, WeightDtype, WeightFormat
from pipeline.types import Group
from reward_models.answers.parts import LocalModel, OpenPool, PartValues

_BATCH = 64
_Scores = list[tuple[float | None, ...]]


@dataclass(frozen=True)
class ImplicitSettings:
    """Of an implicit reward (DPO, arXiv:2305.18290, equation 5): r(x, y) = β log π(y | x) / π_ref(y | x).

    Attributes:
        policy, reference: model folders.
        beta: β.
        dtype: of matrix products.
        trust_remote_code: run code that ships with the models.
        held: how their weights are held.
    """

    policy: str
    reference: str
    beta: float
    dtype: Precision
    trust_remote_code: bool
    held: WeightFormat = FLOAT32

    @property
    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain JSON."""
        bits = self.held.quantisation
        return {
            "policy": self.policy,
            "reference": self.reference,
            "beta": self.beta,
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            "held": [self.held.dtype, None if bits is None else bits.model_dump(mode="json")],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "ImplicitSettings":
        """The settings that ``plain`` holds."""
        dtype: WeightDtype
        dtype, bits = plain["held"]
        held = WeightFormat(dtype, None if bits is None else Quantisation.model_validate(bits))
        return cls(**{**plain, "held": held})


class ImplicitReward:
    """Score the sampled tokens, in nats times β; the prompt's partition function is left out."""

    def __init__(self, settings: ImplicitSettings, engines: OpenPool | None = None) -> None:
        """Hold one model in memory at a time. ``engines``: compute in processes of their own; None: in this one."""
        self._beta = settings.beta
        self._pool = None if engines is None else engines(LocalModel("implicit", settings.plain))
        self._parts = ImplicitParts(settings) if self._pool is None else None

    def score(self, groups: Sequence[Group]) -> _Scores:
        """Return one score per response; a group's scores do not depend on the other groups."""
        if self._pool is not None:
            sums = self._pool.values(groups)
        else:
            assert self._parts is not None, "either of the two"
            sums = computed(self._parts, groups, 2 * sum(len(group.responses) for group in groups))
        half = len(sums) // 2
        pairs = zip(sums[:half], sums[half:], strict=True)
        rewards = iter([self._beta * ((ours or 0.0) - (theirs or 0.0)) for ours, theirs in pairs])
        return [tuple(next(rewards) for _ in group.responses) for group in groups]


class ImplicitParts:
    """Log-probabilities of whole responses, in nats: first of all under the policy, then under its reference."""

    def __init__(self, settings: ImplicitSettings) -> None:
        """Load nothing yet."""
        self._settings = settings
        self._held_path: str | None = None
        self._score: Any = None
        self._job: Any = None
        self._passes: list[list[int]] = []
        self._responses = 0

    @property
    def described(self) -> dict[str, JsonValue]:
        """Nothing: its labels have no version of their own."""
        return {}

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Nothing to count."""
        return {}

    def start(self, groups: Sequence[Group]) -> int:
        """Take up ``groups``; return the number of forward passes under both models."""
        from pipeline.training.distributed.passes import PassJob, cut_passes

        sequences = [(group.prompt_ids, response.token_ids) for group in groups for response in group.responses]
        self._job = PassJob(sequences, _BATCH, self._settings.dtype, frozenset())
        self._passes = cut_passes(self._loaded(self._settings.policy), self._job)
        self._responses = len(sequences)
        return 2 * len(self._passes)

    def part(self, number: int) -> PartValues:
        """Compute one pass."""
        from pipeline.training.distributed.passes import one_pass

        theirs, place = divmod(number, len(self._passes))
        score = self._loaded(self._settings.reference if theirs else self._settings.policy)
        values = one_pass(score, self._job.sequences, self._passes[place])
        return [(i + theirs * self._responses, sum(logps)) for i, (logps, _) in values.items()]

    def _loaded(self, path: str) -> Any:
        from pipeline.models.policy import load_for_scoring
        from pipeline.training.distributed.passes import pass_scores

        if self._held_path != path:
            # The model before is freed first.
            self._score = self._held_path = None
            settings = self._settings
            model = load_for_scoring(path, settings.held, trust_remote_code=settings.trust_remote_code)
            self._score, self._held_path = pass_scores(model, self._job), path
        return self._score


class Members:
    """The discriminators of one version; a response's score is their mean score."""

    def __init__(
        self, folders: Sequence[Path], rendering: Rendering | None = None, engines: OpenPool | None = None
    ) -> None:
        """Load them.

        Args:
            folders: one for each.
            rendering: of the policy, for members with its chat template.
            engines: compute in processes of their own; None: in this one.
        """
        self._count = len(folders)
        self._members: list[Any] = []
        self._starts: list[int] = []
        self._responses = 0
        self._pool = None
        if engines is not None:
            given = None if rendering is None else rendering.plain
            self._pool = engines(LocalModel("members", {"folders": [str(folder) for folder in folders]}, given))
            return
        from reward_models.local.classifier import ClassifierReward

        self._members = [ClassifierReward(ClassifierScorer(path=str(folder)), rendering) for folder in folders]

    @property
    def described(self) -> dict[str, JsonValue]:
        """Nothing: their labels have no version of their own."""
        return {}

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Nothing to count."""
        return {}

    def start(self, groups: Sequence[Group]) -> int:
        """Take up ``groups``; return the number of forward passes of all members."""
        counts = [member.start(groups) for member in self._members]
        self._starts = [*accumulate(counts, initial=0)]
        self._responses = sum(len(group.responses) for group in groups)
        return self._starts[-1]

    def part(self, number: int) -> PartValues:
        """Compute one pass of one member, whose places follow those of the members before it."""
        place = bisect_right(self._starts, number) - 1
        values = self._members[place].part(number - self._starts[place])
        return [(place * self._responses + i, value) for i, value in values]

    def score(self, groups: Sequence[Group]) -> _Scores:
        """Return the members' mean scores."""
        return [
            tuple(_mean(scores) for scores in zip(*of_group, strict=True))
            for of_group in zip(*self._scores(groups), strict=True)
        ]

    def margins(self, comparisons: Sequence[Group]) -> list[tuple[float, ...]]:
        """Return, for each comparison, the first response's score minus the second's under each member."""
        return [
            tuple((first or 0.0) - (second or 0.0) for first, second in of_comparison)
            for of_comparison in zip(*self._scores(comparisons), strict=True)
        ]

    def _scores(self, groups: Sequence[Group]) -> list[_Scores]:
        """Return each member's scores."""
        if self._pool is None:
            return [member.score(groups) for member in self._members]
        given = iter(self._pool.values(groups))
        return [[tuple(next(given) for _ in group.responses) for group in groups] for _ in range(self._count)]


def computed(model: ImplicitParts, groups: Sequence[Group], places: int) -> list[float | None]:
    """Return all values of ``groups``, computed part by part in this process."""
    found: list[float | None] = [None] * places
    for number in range(model.start(groups)):
        for place, value in model.part(number):
            found[place] = value
    return found


def _mean(scores: Sequence[float | None]) -> float:
    # A classifier scores every response.
    return sum(score or 0.0 for score in scores) / len(scores)
