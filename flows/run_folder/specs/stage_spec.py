"""The properties of a stage. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from flows.run_folder.inputs import Place, nothing
from pipeline.config import RunConfig
from pipeline.storage.run_folder import Stage

Sections = tuple[str, ...]
Inputs = Callable[[Place], list[Stage]]
RunPart = Literal["start", "offline", "iterative"]
# What bounds a stage's size on disk: the config's files, the round's samples, the weights, optimiser and examples of a
# training, half of an evaluation, a pairs stage, a discriminator's members, or the plan's number for the stage itself.
Bound = Literal["sources", "samples", "training", "evaluation", "pairs", "members", "plan"]


def _no_facts(place: Place) -> dict[str, JsonValue]:
    return {}


def _in_every_round(config: RunConfig, round_: int) -> bool:
    return True


@dataclass(frozen=True)
class StageSpec:
    """The properties of a stage.

    Attributes:
        name: the name of its folder.
        unit: the unit that its progress counts.
        sections: parts of the config in its key; see ``key_parts.plain_section``.
        inputs: stages whose keys are in its key.
        parts: the parts of a run that ask for it by name; if empty, it is made together with another stage.
        facts: the rest of its key: digests of files outside the run folder, people's answers.
        opens: stages whose files it reads too; the stages in its key vouch for them.
        by_shard: the stage of the same round whose shards it reads one by one, as they are finished.
        bound: what bounds its size on disk.
        made: whether a round of those parts has it; False if only the run folder shows it.
        weights: whether it may load the weights of stages that it reads.
        sampled: whether the sampler child serves it; other stages run in the process with torch.
    """

    name: str
    unit: str
    sections: Sections | Callable[[Place], Sections]
    inputs: Inputs
    parts: tuple[RunPart, ...]
    facts: Callable[[Place], dict[str, JsonValue]] = _no_facts
    opens: Inputs = nothing
    by_shard: str | None = None
    bound: Bound = "plan"
    made: Callable[[RunConfig, int], bool] = _in_every_round
    weights: bool = True
    sampled: bool = False

    def sections_at(self, place: Place) -> Sections:
        """The parts of the config in the key at ``place``."""
        return self.sections(place) if callable(self.sections) else self.sections
