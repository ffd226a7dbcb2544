"""Noise schedules of diffusion models, and what a prediction's squared error means under each parametrisation.

A noisy input is x_t = alpha x + sigma e. W, the whole information of a schedule, is half the drop of its log-SNR in
nats: with flat weights, log p(x) is bounded by -W d m up to a constant, m being the mean over the d dimensions of the
squared error of the noise (arXiv:2107.00630). Velocities of flow matching, u = e - x with x_t = (1 - s) x + s e, keep
their own error: the weight of |du|^2 is (1 - s)/s, whose integral from the smallest s is -ln s_min - 1 + s_min.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import UserError

Parametrisation = Literal["epsilon", "v", "x", "flow"]
# diffusers' names in the scheduler's config.
_NAMED: dict[str, Parametrisation] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "x",
    "flow_prediction": "flow",
}


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """The T levels of noise that a model is trained on, the least noisy first; all tensors are [T] float64.

    Attributes:
        alpha, sigma: of the noisy input.
        times: what the network is given.
        parametrisation: what the network predicts.
    """

    alpha: Tensor
    sigma: Tensor
    times: Tensor
    parametrisation: Parametrisation

    @property
    def information(self) -> float:
        """W, in nats per dimension."""
        whole = self._integrated()
        return float(whole[-1] - whole[0])

    def bound_weights(self) -> Tensor:
        """[T] weights with mean 1 for which W d times the mean of weighted errors is the bound itself."""
        whole = self._integrated()
        cells = whole.diff() / 2
        each = torch.cat([cells, cells.new_zeros(1)]) + torch.cat([cells.new_zeros(1), cells])
        return each * (len(each) / each.sum())

    def error_factors(self) -> Tensor:
        """[T] factors that turn squared errors of the prediction into those that are scored: of the noise, or of u."""
        match self.parametrisation:
            case "v":
                return self.alpha.square()
            case "x":
                return (self.alpha / self.sigma).square()
        return torch.ones_like(self.alpha)

    def noise_factors(self) -> Tensor:
        """[T] factors that turn squared errors of the prediction into squared errors of the noise."""
        return self.alpha.square() if self.parametrisation == "flow" else self.error_factors()

    def noisy(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """x_t of ``clean`` [R, ...] at the levels ``index`` [R]."""
        alpha, sigma = (_like(values, index, clean) for values in (self.alpha, self.sigma))
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """What the network should predict, [R, ...]."""
        match self.parametrisation:
            case "epsilon":
                return noise
            case "x":
                return clean
            case "flow":
                return noise - clean
            case "v":
                alpha, sigma = (_like(values, index, clean) for values in (self.alpha, self.sigma))
                return alpha * noise - sigma * clean

    def _integrated(self) -> Tensor:
        if self.parametrisation == "flow":
            return self.sigma.log() - self.sigma
        return self.sigma.log() - self.alpha.log()


def schedule_of(scheduler: Any) -> NoiseSchedule:
    """Return the schedule of a diffusers scheduler.

    Raises:
        UserError: its prediction type is unknown, it has no such schedule, or the last level has no signal left.
    """
    settings: Mapping[str, Any] = scheduler.config
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return flow_schedule(int(settings["num_train_timesteps"]))
    told = settings.get("prediction_type", "epsilon")
    if told not in _NAMED:
        raise UserError(f"scheduler.prediction_type: {told!r}; allowed: {', '.join(_NAMED)}")
    if _NAMED[told] == "flow":
        return flow_schedule(int(settings["num_train_timesteps"]))
    cumulative: Tensor | None = vars(scheduler).get("alphas_cumprod")
    if cumulative is None:
        raise UserError(f"scheduler: {name} has no levels of noise to train on (alphas_cumprod)")
    kept = cumulative.double()
    if not bool(((kept > 0) & (kept < 1)).all()):
        raise UserError(
            "scheduler.rescale_betas_zero_snr: at one level nothing or everything is noise, so the score has no bound; "
            "allowed: false"
        )
    return NoiseSchedule(kept.sqrt(), (1 - kept).sqrt(), torch.arange(len(kept)).double(), _NAMED[told])


def flow_schedule(levels: int) -> NoiseSchedule:
    """Return the straight path x_t = (1 - s) x + s e at s = 1/T, 2/T ... 1."""
    steps = torch.arange(1, levels + 1).double()
    return NoiseSchedule(1 - steps / levels, steps / levels, steps * (1000 / levels), "flow")


def _like(values: Tensor, index: Tensor, shape: Tensor) -> Tensor:
    return values.to(device=index.device)[index].to(shape.dtype).view(-1, *[1] * (shape.ndim - 1))
