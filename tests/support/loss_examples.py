"""Random examples with all that any loss may read, and the run's settings for tests of training by loss."""

import random
from dataclasses import replace

import torch

from pipeline.config import Optimisation
from pipeline.losses import Loss, load_preset
from pipeline.training.batches.examples import Continuation, Example
from tests.support.tiny_training import (
    random_groups,
    random_ids,
    random_pairs,
    random_unpaired,
    tiny_llama,
    under_references,
)

# Small critics, heads that learn in a few steps, and no dropout, whose lots depend on how a batch is cut; a β with
# which the squares of long log-ratios keep the digits that float32 has.
SMALLER: dict[str, dict[str, object]] = {
    "ganpo": {"adversary": {"hidden_size": 32, "layers": 1, "heads": 2}},
    "sparsepo": {
        "weights": {
            "kind": "learned",
            "dropout": 0.0,
            "masks": "independent",
            "l1_ratio": 0.1,
            "head_learning_rate": 3e-3,
        }
    },
    "mi_dpo": {"prior": {"kind": "learned", "head_learning_rate": 3e-3}},
    "hpo": {"advantage": {"head_learning_rate": 3e-3}},
    "apa": {"beta": 0.2},
    "apa_token": {"eta": 1.0, "head_learning_rate": 3e-3},
}


def loss_named(name: str, **overrides: object) -> Loss:
    """The preset ``name``, made small enough for a test."""
    return load_preset(name, **{**SMALLER.get(name, {}), **overrides})


def full_pairs(count: int, seed: int = 0) -> list[Example]:
    """Pairs with rewards, win probabilities, token weights, a prior, a dispersion and a calibration response."""
    draw = random.Random(seed)
    found = []
    for example in random_pairs(count, seed):
        responses = tuple(
            replace(
                c,
                weights=tuple(0.5 + draw.random() for _ in c.ids),
                prior=-draw.random() * len(c.ids),
                reward=better + draw.random(),
                win_probability=0.5 * (better + draw.random()),
            )
            for better, c in zip((1, 0), example.responses, strict=True)
        )
        calibration = Continuation(random_ids(draw, 1, 9))
        dispersion = 0.5 + draw.random()
        found.append(replace(example, responses=responses, calibration=calibration, dispersion=dispersion))
    return found


def estimated(examples: list[Example], seed: int = 0) -> list[Example]:
    """The examples with advantages and returns of all response tokens."""
    draw = random.Random(seed)
    return [
        e.with_continuations(
            [
                replace(c, advantages=tuple(draw.gauss(0, 1) for _ in c.ids), returns=(c.reward or 0.0,) * len(c.ids))
                for c in e.continuations
            ]
        )
        for e in examples
    ]


def examples_for(loss: Loss, count: int, *models: torch.nn.Module) -> list[Example]:
    """Examples of the kind that the loss is made for, with log-probabilities under ``models`` as references."""
    if "responses" in loss.needs:
        examples = random_groups(count, sizes=(4, 3))
        examples = estimated(examples) if loss.needs.advantages else examples
    elif loss.composition.unpaired and loss.composition.advantage is None:
        examples = random_unpaired(count)
    else:
        examples = full_pairs(count)
    return under_references(
        examples, *(models or [tiny_llama(seed=s) for s in range(1, 1 + max(1, loss.needs.references))])
    )


def settings(**fields: object) -> Optimisation:
    return Optimisation.model_validate({"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3} | fields)
