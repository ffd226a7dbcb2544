"""Scores of images under diffusion models: denoising errors in the place of token log-probabilities (arXiv:2311.12908).

A draw of (level, noise) stands for a token. The score of one of K draws is -W d m / K in nats, m being the mean squared
error of the predicted noise, or -m / (2 K) in units of mean error. A loss that reads the sum over a response thus reads
a bound on the log-ratio, or half the difference of errors that published code multiplies with its beta.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.images.scoring import ImageScore
from pipeline.errors import UserError
from pipeline.images.draw_scores import DrawScores
from pipeline.images.draws import draw_rows
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import Conditions, predict
from pipeline.models.token_logps import TokenFacts
from pipeline.models.weights.weight_format import Precision
from pipeline.types import derive_seed

# Tokens before an image's draws: the seed of the pair, and the row of its prompt's condition.
_HEAD = 2
# Token ids are stored in 32 bits.
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ImageTable:
    """The images that ids name by number, with the conditions of their prompts.

    Attributes:
        latents: [N, C, H, W], of any float type.
        conditions: [P, ...] each, of the P prompts; empty for an unconditional model.
        null: [1, ...] each: the condition of an emptied prompt; None: prompts are never emptied.
    """

    latents: Tensor
    conditions: Conditions
    null: Conditions | None = None


def prompt_of_draws(seed: int, example: str, condition: int) -> tuple[int, int]:
    """Return the prompt's ids of an example: the seed of its draws, and the row of its condition.

    Args:
        seed: of the training run.
        example: its id.
        condition: row of the prompt in ``ImageTable.conditions``; 0 for an unconditional model.
    """
    return derive_seed(seed, "draws", example), condition


def image_ids(image: int, draws: int) -> tuple[int, ...]:
    """Return the ids of an image: one for each of its ``draws`` in all epochs together.

    Args:
        image: row of ``ImageTable.latents``.
        draws: those of an epoch, times the epochs.

    Raises:
        UserError: more images and draws than ids.
    """
    if (image + 1) * draws - 1 > _LARGEST_ID:
        raise UserError(f"draws: {draws:,} for each of more than {image:,} images; at most {_LARGEST_ID:,} in all")
    return tuple(range(image * draws, (image + 1) * draws))


class DenoisingScores(DrawScores):
    """A diffusion model as a module from ids of draws to their scores.

    It stands where ``TokenLogps`` stands for text. ``forward`` computes all rows of a batch at once: both sides of
    pairs, with the same draws.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        table: ImageTable,
        settings: ImageScore,
        epochs: int = 1,
        *,
        rows: int | None = None,
        dtype: Precision = "float32",
    ) -> None:
        """See the class.

        Args:
            policy: its network is trained, or scored.
            table: of the images and conditions that ids name.
            settings: of the score.
            epochs: of training; ids number the draws of all of them.
            rows: of a forward pass of the network; more are cut and fewer filled up, so that a row's bits never depend
                on the others. None: as many as are asked for.
            dtype: of matrix products (autocast).

        Raises:
            UserError: prompts are emptied, but the table has no condition for that.
        """
        super().__init__()
        if settings.empty_prompts > 0 and table.null is None:
            raise UserError("empty_prompts: this model has no condition for an emptied prompt; allowed: 0")
        self.model, self.dtype, self.draws = policy.network, dtype, settings.draws
        self.policy, self.settings, self.epochs, self.rows = policy, settings, epochs, rows
        # A tuple keeps it out of copies and of the state.
        self._table = (table,)
        schedule = policy.schedule
        size = policy.shape[0] * policy.shape[1] * policy.shape[2]
        scale = schedule.information * size if settings.score_scale == "nats" else 0.5
        factors = schedule.error_factors() * (scale / settings.draws)
        if settings.weighting == "bound":
            factors = factors * schedule.bound_weights()
        # [T]: what a squared error at each level counts.
        self._factors = factors.float()

    def with_network(self, network: Any) -> "DenoisingScores":
        """Return the same scores under another network, such as a frozen reference."""
        policy = self.policy.with_network(network)
        return DenoisingScores(policy, self._table[0], self.settings, self.epochs, rows=self.rows, dtype=self.dtype)

    def forward(self, ids: Tensor, mask: Tensor, packed: object = None) -> TokenFacts:
        """Scores of draws.

        Args:
            ids: [R, T]: ``prompt_of_draws``, then some of ``image_ids``.
            mask: [R, T] bool, true at draws.
            packed: not read; rows are no streams.

        Returns:
            facts whose ``policy`` [R, T] is the score of each draw, 0 elsewhere.
        """
        row, place = mask.nonzero(as_tuple=True)
        image, draw = (part.cpu() for part in _parted(ids[row, place], self.epochs * self.draws))
        seeds, condition = ids[row, 0].tolist(), ids[row, _HEAD - 1].cpu()
        keys = [*zip(seeds, draw.tolist(), strict=True)]
        drawn = draw_rows(keys, self.policy.shape, len(self._factors), self.settings)
        table, device = self._table[0], ids.device
        clean = table.latents[image].to(device, torch.float32)
        of_row = drawn.of_row.to(device)
        level, noise = drawn.level.to(device)[of_row], drawn.noise.to(device)[of_row]
        conditions = self._conditions(condition, drawn.emptied[drawn.of_row], device)
        errors = self._errors(clean, noise, level, conditions)
        scores = -self._factors.to(device)[level] * errors
        return TokenFacts(policy=torch.zeros(mask.shape, device=device).index_put((row, place), scores))

    def _errors(self, clean: Tensor, noise: Tensor, level: Tensor, conditions: Conditions) -> Tensor:
        """[R] mean squared errors of the network's own prediction."""
        schedule = self.policy.schedule
        noisy, target = schedule.noisy(clean, noise, level), schedule.target(clean, noise, level)
        times = schedule.times.to(noisy.device)[level].float()
        count = len(noisy)
        parts = []
        for start in range(0, count, self.rows or count):
            part = slice(start, start + (self.rows or count))
            told = tuple(c[part] for c in conditions)
            said = predict_rows(self.model, noisy[part], times[part], told, self.rows, self.dtype).float()
            parts.append((said - target[part]).square().flatten(1).mean(1))
        return torch.cat(parts)

    def _conditions(self, condition: Tensor, emptied: Tensor, device: torch.device) -> Conditions:
        table = self._table[0]
        found = []
        for number, values in enumerate(table.conditions):
            own = values[condition]
            if table.null is not None and bool(emptied.any()):
                own = torch.where(emptied.view(-1, *[1] * (own.ndim - 1)), table.null[number], own)
            found.append(own.to(device))
        return tuple(found)


def predict_rows(
    network: Any, noisy: Tensor, times: Tensor, conditions: Conditions, rows: int | None, dtype: Precision
) -> Tensor:
    """Return predictions for at most ``rows`` inputs, filled up to that many with copies of the first."""
    count = len(noisy)
    missing = 0 if rows is None else rows - count

    def filled(values: Tensor) -> Tensor:
        return values if not missing else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])

    held = next(iter(network.parameters())).dtype
    inputs = filled(noisy).to(held), filled(times), tuple(_as_held(filled(c), held) for c in conditions)
    with torch.autocast(noisy.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        return predict(network, *inputs)[:count]


def _as_held(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def _parted(ids: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    return ids // draws, ids % draws
