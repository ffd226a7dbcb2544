"""Work of reward models that run here, in parts: what one process computes at once, another can take over. Torch-free.

The parts of the same groups are the same in every process, so it does not matter which one computes a part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import JsonValue

from pipeline.types import Group

# The place of a value, counted over all responses (or comparisons), and the value.
PartValues = list[tuple[int, float | None]]
OnValue = Callable[[int, float | None], None]


@dataclass(frozen=True)
class LocalModel:
    """A reward model that runs here, as plain data from which any process can load it.

    Attributes:
        kind: ``classifier`` and ``pairwise``: of those settings; ``members``: discriminators, each counted apart;
            ``implicit``: a policy's own reward.
        settings: of that kind, plain.
        rendering: arguments of ``Rendering``; None: the model's own template alone.
        field: the place of the settings in the config, for messages.
    """

    kind: Literal["classifier", "pairwise", "members", "implicit"]
    settings: Mapping[str, JsonValue]
    rendering: Mapping[str, JsonValue] | None = None
    field: str = "scorer"

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads the policy's tokens, not texts."""
        return self.kind == "implicit"

    def places(self, groups: Sequence[Group]) -> int:
        """Return the number of values that it computes of ``groups``."""
        responses = sum(len(group.responses) for group in groups)
        match self.kind:
            case "classifier":
                return responses
            case "pairwise":
                return len(groups)
            case "members":
                folders = self.settings["folders"]
                assert isinstance(folders, list)
                return len(folders) * responses
            case "implicit":
                # Under the policy, then under its reference.
                return 2 * responses


class InParts(Protocol):
    """A loaded model that computes groups part by part."""

    @property
    def described(self) -> dict[str, JsonValue]:
        """What the version of its labels depends on besides settings and files."""
        ...

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Facts for a manifest; numbers count over all groups so far."""
        ...

    def start(self, groups: Sequence[Group]) -> int:
        """Take up ``groups``; return the number of parts."""
        ...

    def part(self, number: int) -> PartValues:
        """Compute one part of the groups that ``start`` took up."""
        ...


class EnginePool(Protocol):
    """Engines of one model, each in a process of its own.

    Attributes:
        described: what the model tells of itself once loaded, for the version of its labels.
        facts: for a manifest; numbers count over all calls.
    """

    described: Mapping[str, JsonValue]
    facts: dict[str, JsonValue]

    def values(self, groups: Sequence[Group], on_value: OnValue | None = None) -> list[float | None]:
        """Return a value for each response or comparison, in order; tell ``on_value`` of each as it comes.

        Raises:
            RunError: a part failed again and again, or the model refuses it.
        """
        ...


# Starts the engines of a model.
OpenPool = Callable[[LocalModel], EnginePool]
