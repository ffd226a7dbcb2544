"""A loss as a run has it: one formula, or a weighted sum of several. Torch-free.

A preset file in configs/loss/ is one ``Composition``.
"""

from pydantic import Field, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed
from pipeline.config.loss.components import (
    ActivationWeights,
    ExtrapolatedPrior,
    GivenPrior,
    GivenWeights,
    HarmonicPrior,
    LearnedPrior,
    LearnedWeights,
    MixturePrior,
)
from pipeline.config.loss.formula import Formula
from pipeline.config.loss.needs import needs_of
from pipeline.config.loss.terms import AdvantageHead, TokenAdvantageHead

# What a run computes or reads for one such component alone, by the field that holds it.
_SUPPLIED = {
    "prior": (MixturePrior, HarmonicPrior, ExtrapolatedPrior, LearnedPrior, GivenPrior),
    "weights": (LearnedWeights, ActivationWeights, GivenWeights),
    "dispersion": (Closed,),
    "head": (TokenAdvantageHead,),
    "advantage": (Closed,),
    "adversary": (Closed,),
}


class WeightedPart(Closed):
    """A part of a sum: a preset, or components written out under ``settings``."""

    preset: str = "custom"
    weight: float = Field(1.0, gt=0, description="factor of the whole part, its regularisers included")
    settings: Formula = Field(description="its own settings; they may also stand beside preset and weight")


class Composition(Formula):
    """One formula, or, with ``sum``, Σ weight · L_part; all other fields then have their defaults."""

    sum: tuple[WeightedPart, ...] = Field(
        (), description="parts, each with a preset, its weight and settings", json_schema_extra=LATER
    )

    @property
    def parts(self) -> tuple[Formula, ...]:
        """The losses that it is the sum of; itself if it is none."""
        return tuple(part.settings for part in self.sum) or (self,)

    @property
    def inputs(self) -> Formula:
        """The components that say what a run must supply: of a sum, those of its parts; β is that of the first."""
        if not self.sum:
            return self
        found = {name: value for name in _SUPPLIED for value in self._supplied(name)}
        return self.parts[0].model_copy(update=found)

    @property
    def one_sided(self) -> bool:
        """Whether a term reads one response alone, or scores are not compared as differences."""
        return any(part.one_sided for part in self.parts) if self.sum else super().one_sided

    @property
    def unpaired(self) -> bool:
        """Whether it can be computed from single responses marked good or bad."""
        return all(part.unpaired for part in self.parts) if self.sum else super().unpaired

    @model_validator(mode="after")
    def _parts_alone_are_read(self) -> "Composition":
        told = {name for name, field in Formula.model_fields.items() if field.json_schema_extra == OPERATIONAL}
        own = sorted((self.changed & set(Formula.model_fields)) - told)
        if self.sum and own:
            raise ValueError(f"{own[0]}: not read by a weighted sum; give it to a part, as in sum.0.{own[0]}")
        return self

    @model_validator(mode="after")
    def _parts_share_their_data(self) -> "Composition":
        if len({part.head is None for part in self.parts}) > 1:
            raise ValueError("sum: its parts read the same data: all of them K responses to a prompt (head), or none")
        for name in _SUPPLIED if self.sum else ():
            if len(found := self._supplied(name)) > 1:
                told = f"{_named(found[0])} and {_named(found[1])}"
                raise ValueError(
                    f"sum: two parts have {name} of different settings ({told}), but a run supplies one; give both the "
                    "same, or leave one out"
                )
        if len({divides_rewards(part) for part in self.parts}) > 1:
            raise ValueError(
                "sum: head.deviation: round divides the rewards of all parts; give it to all heads or none"
            )
        asked = [needs_of(part) for part in self.parts]
        if len({needs.opponent for needs in asked if "win_probability" in needs}) > 1:
            raise ValueError(
                "sum: one part reads the probability to beat the other response, another one that to beat the average "
                "one; a run supplies one of them"
            )
        return self

    def _supplied(self, name: str) -> list[Closed]:
        """The differing components ``name`` of the parts that a run must supply something for."""
        found: list[Closed] = []
        for part in self.parts:
            value = part.__dict__[name]
            if isinstance(value, _SUPPLIED[name]) and value not in found:
                found.append(value)
        return found


def divides_rewards(loss: Formula) -> bool:
    """Whether a run divides rewards by their deviation over the round."""
    return isinstance(loss.head, AdvantageHead | TokenAdvantageHead) and loss.head.deviation == "round"


def _named(component: Closed) -> str:
    plain = component.model_dump()
    return str(plain.get("kind", ", ".join(f"{name} {value}" for name, value in plain.items())))
