"""``prefloop plan --cards``: what trainings of a policy need on cards that need not be here, from its config alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.planning.cards.fitting import GB, Card, advice, training_parts, whole_of
from flows.planning.cards.recipes import RECIPES, PartCounts, Recipe, recipe_of
from flows.planning.cards.stages import SAMPLING, other_stages
from flows.planning.cards.traced import PassShape, counted_parts, traced_activations
from flows.planning.cards.traffic import RoundTraffic, round_traffic
from flows.planning.memory import SERVER_SHARE
from flows.planning.probe import model_shape
from pipeline.config import Lora, PretrainedPolicy, RunConfig, VllmSampler
from pipeline.config.files import load_config
from pipeline.errors import UserError
from pipeline.models.weights.weight_format import WeightDtype, frozen_format

# As the table in the README of training has them.
USUAL_LORA = Lora(rank=16)


@dataclass(frozen=True, slots=True)
class OnCards:
    """One recipe's bytes by part on each card, with and without activation checkpointing."""

    recipe: Recipe
    counts: PartCounts
    traffic: RoundTraffic
    kept: tuple[dict[str, int], ...]
    recomputed: tuple[dict[str, int], ...]


@dataclass(frozen=True, slots=True)
class CardPlan:
    """Trainings of one policy on several cards.

    Attributes:
        path: of the policy.
        cards: asked about.
        pass_: the largest forward pass.
        checkpointing: whether the config computes layers again.
        rows: recipes; the config's own comes first.
        others: bytes of the run's other stages on one card; of sampling, what the engine needs of what it is given.
        given: the share of a card that the engine may take.
    """

    path: str
    cards: tuple[Card, ...]
    pass_: PassShape
    checkpointing: bool
    rows: tuple[OnCards, ...]
    others: Mapping[str, Mapping[str, int]]
    given: float

    def fits_on(self, index: int) -> bool:
        """Whether every stage of the config fits on card ``index``."""
        return self.training_fits(index) and not self.too_large(index)

    def training_fits(self, index: int) -> bool:
        """Whether the config's training fits on card ``index``."""
        first = self.rows[0]
        parts = first.recomputed if self.checkpointing else first.kept
        return whole_of(parts[index]) <= self.cards[index].size

    def too_large(self, index: int) -> list[str]:
        """The other stages that do not fit on card ``index``."""
        size = self.cards[index].size
        return [
            name
            for name, parts in self.others.items()
            if whole_of(parts) > size * (self.given if name == SAMPLING else 1)
        ]

    @property
    def fits(self) -> bool:
        """Whether the config fits on any of the cards."""
        return any(self.fits_on(index) for index in range(len(self.cards)))

    @property
    def advice(self) -> str:
        """What to change if it does not."""
        more = "" if self.checkpointing else "set training.gradient_checkpointing: true, "
        return more + advice(self.rows[0].recipe)

    def plain(self, disk: float) -> dict[str, Any]:
        """As JSON data, in bytes, and seconds at ``disk`` GB a second."""
        return {
            "policy": self.path,
            "cards": [str(card) for card in self.cards],
            "tokens": self.pass_.tokens,
            "fits": self.fits,
            "fits_on": {str(card): self.fits_on(index) for index, card in enumerate(self.cards)},
            "disk_gb_per_second": disk,
            "other_stages": {name: dict(parts) for name, parts in self.others.items()},
            "trainings": {
                row.recipe.name: {
                    "checkpointing": [*row.recomputed],
                    "no checkpointing": [*row.kept],
                    "written": dict(row.traffic.written),
                    "read": dict(row.traffic.read),
                    "seconds": row.traffic.seconds(disk * GB),
                }
                for row in self.rows
            },
        }


def survey(
    shape: Any,
    recipes: Sequence[Recipe],
    lora: Lora,
    pass_: PassShape,
    cards: Sequence[Card],
    *,
    traffic: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[OnCards, ...]:
    """Work out ``recipes`` for a model with the transformers config ``shape``; recipes that trace alike share a trace.

    Args:
        shape: of the policy.
        recipes: to work out.
        lora: the adapter of those that have one.
        pass_: the largest forward pass, with or without checkpointing.
        cards: asked about.
        traffic: arguments of ``round_traffic``; None: a round with fresh optimiser state and one reference.
        trust_remote_code: run code that ships with the model.
    """
    counted = {True: counted_parts(shape, lora, trust_remote_code=trust_remote_code)}
    counted[False] = counted_parts(shape, None, trust_remote_code=trust_remote_code)
    known: dict[tuple[bool, str, str, bool], int] = {}

    def activations(recipe: Recipe, held: WeightDtype, checkpointing: bool) -> int:
        key = (recipe.adapter, held, recipe.matmul, checkpointing)
        if key not in known:
            one = Recipe("", held, recipe.adapter, matmul=recipe.matmul)
            each = PassShape(pass_.trees, pass_.prompt, pass_.response, pass_.responses, pass_.packed, checkpointing)
            known[key] = traced_activations(shape, one, lora, each, trust_remote_code=trust_remote_code)
        return known[key]

    def parts(recipe: Recipe, checkpointing: bool) -> tuple[dict[str, int], ...]:
        found = []
        for card in cards:
            held: WeightDtype = "bfloat16" if card.count > 1 and recipe.matmul == "bfloat16" else recipe.held
            found.append(
                training_parts(recipe, counted[recipe.adapter], activations(recipe, held, checkpointing), card)
            )
        return tuple(found)

    given = traffic or {"saved_item": 2, "carried": False, "checkpoints": 0, "references": 1}
    return tuple(
        OnCards(
            recipe,
            counted[recipe.adapter],
            round_traffic(recipe, counted[recipe.adapter], **given),
            parts(recipe, False),
            parts(recipe, True),
        )
        for recipe in recipes
    )


def plan_cards(files: list[Path], settings: list[str], cards: tuple[Card, ...]) -> CardPlan:
    """Plan the training of a config, and the usual ones beside it, on ``cards``; reads no data and no weights.

    Raises:
        UserError: a mistake in the config, or no policy of its own.
    """
    config = load_config(files, settings)
    if not isinstance(config.policy, PretrainedPolicy):
        raise UserError("--cards: policy.kind: must be pretrained: a policy made from scratch fits on any card")
    shape = model_shape(
        config.policy.path, "policy.path", revision=config.policy.revision, trust_remote_code=config.trusts_policy
    )
    own = recipe_of(config, config.training, config.policy.path)
    frozen = frozen_format(config, config.policy.path)
    rows = survey(
        shape,
        (own, *RECIPES),
        config.training.lora or USUAL_LORA,
        largest_pass(config),
        cards,
        traffic={
            "saved_item": 4 if frozen.dtype == "float32" else 2,
            "carried": config.training.optimiser_state == "carried",
            "checkpoints": int(config.training.checkpoint_every > 0),
            "references": 1,
            "merged": config.training.lora is not None and config.training.lora.lifetime == "round",
        },
        trust_remote_code=config.trusts_policy,
    )
    sampler = config.sampler
    return CardPlan(
        config.policy.path,
        cards,
        largest_pass(config),
        config.training.gradient_checkpointing,
        rows,
        other_stages(config, shape, rows[0].recipe, rows[0].counts, frozen),
        sampler.gpu_memory_utilization if isinstance(sampler, VllmSampler) else SERVER_SHARE,
    )


def largest_pass(config: RunConfig) -> PassShape:
    """The largest pass that the settings allow: prompts and responses of the greatest lengths."""
    prompt = config.chat.max_prompt_tokens
    response = config.chat.max_response_tokens if config.mode == "offline" else config.sampling.max_tokens
    each = prompt + 2 * response if config.training.packing else 2 * (prompt + response)
    trees = max(1, min(config.training.micro_batch_size, (config.training.micro_batch_tokens or 16384) // each))
    return PassShape(trees, prompt, response, 2, config.training.packing)
