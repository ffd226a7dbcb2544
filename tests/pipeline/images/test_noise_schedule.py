"""What errors mean: the information of schedules, and parametrisations of one model."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from pipeline.errors import UserError
from pipeline.images.noise_schedule import NoiseSchedule, Parametrisation, flow_schedule, schedule_of

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("scheduler", "information"),
    [
        (DDPMScheduler(), 9.7),
        (DDIMScheduler(**STABLE), 6.2),
        (DDIMScheduler(beta_schedule="squaredcos_cap_v2"), 15.0),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 5.9),
    ],
    ids=["linear", "stable diffusion", "cosine", "flow"],
)
def test_the_information_of_known_schedules(scheduler: Any, information: float) -> None:
    schedule = schedule_of(scheduler)
    assert schedule.information == pytest.approx(information, abs=0.05)
    weights = schedule.bound_weights()
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.min()) > 0


def test_the_weights_of_the_bound_are_half_the_drop_of_the_log_snr_at_each_level() -> None:
    schedule = schedule_of(DDPMScheduler())
    snr = (schedule.alpha / schedule.sigma).square()
    drops = -snr.log().diff() / 2
    each = schedule.bound_weights() * schedule.information / len(snr)
    assert float(each[500]) == pytest.approx(float(drops[499] + drops[500]) / 2, rel=1e-6)
    assert float(each.sum()) == pytest.approx(float(drops.sum()), rel=1e-6)
    # The discrete bound, (SNR(t-1)/SNR(t) - 1)/2, agrees for small steps.
    assert float(((snr[:-1] / snr[1:] - 1) / 2).sum()) == pytest.approx(schedule.information, rel=0.06)


def test_the_information_of_a_flow_is_the_integral_of_its_weight() -> None:
    schedule = flow_schedule(1000)
    smallest = 1 / 1000
    assert schedule.information == pytest.approx(-math.log(smallest) - 1 + smallest, rel=1e-9)
    each = schedule.bound_weights() * schedule.information
    s = 0.3
    assert float(each[299]) == pytest.approx((1 - s) / s, rel=1e-3)


def said(noise: torch.Tensor, noisy: torch.Tensor, schedule: NoiseSchedule, index: torch.Tensor) -> torch.Tensor:
    """What a model that thinks ``noise`` is in ``noisy`` predicts, in the schedule's parametrisation."""
    alpha, sigma = (values[index].view(-1, 1) for values in (schedule.alpha, schedule.sigma))
    clean = (noisy - sigma * noise) / alpha
    match schedule.parametrisation:
        case "epsilon":
            return noise
        case "x":
            return clean
        case "v":
            return alpha * noise - sigma * clean
        case "flow":
            return noise - clean


def error(schedule: NoiseSchedule, parametrisation: Parametrisation) -> torch.Tensor:
    """Squared errors of one model in units of noise, from its prediction in ``parametrisation``."""
    own = NoiseSchedule(schedule.alpha, schedule.sigma, schedule.times, parametrisation)
    draw = torch.Generator().manual_seed(0)
    clean, noise, thought = (torch.randn(6, 50, generator=draw, dtype=torch.float64) for _ in range(3))
    index = torch.tensor([1, 100, 400, 500, 800, 950])
    noisy = own.noisy(clean, noise, index)
    off = said(noise + 0.1 * thought, noisy, own, index) - own.target(clean, noise, index)
    return off.square().mean(1) * own.noise_factors()[index]


@pytest.mark.parametrize("parametrisation", ["v", "x"])
def test_predictions_of_noise_velocity_and_image_are_one_error(parametrisation: Parametrisation) -> None:
    schedule = schedule_of(DDIMScheduler(**STABLE))
    assert torch.allclose(error(schedule, parametrisation), error(schedule, "epsilon"), rtol=1e-9)
    factors = NoiseSchedule(schedule.alpha, schedule.sigma, schedule.times, parametrisation)
    assert torch.equal(factors.error_factors(), factors.noise_factors())


def test_a_flow_is_the_same_error_of_noise_and_is_scored_in_its_own_units() -> None:
    schedule = flow_schedule(1000)
    assert torch.allclose(error(schedule, "flow"), error(schedule, "epsilon"), rtol=1e-9)
    assert torch.equal(schedule.error_factors(), torch.ones(1000, dtype=torch.float64))
    # In the bound, a flow's error and that of its noise count the same at each level.
    as_noise = NoiseSchedule(schedule.alpha[:-1], schedule.sigma[:-1], schedule.times[:-1], "epsilon")
    flow = schedule.bound_weights() * schedule.information / 1000
    noise = as_noise.bound_weights() * as_noise.information / 999 * (1 - schedule.sigma[:-1]).square()
    assert torch.allclose(flow[50:950], noise[50:950], rtol=1e-3)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr.*allowed: false"):
        schedule_of(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(UserError, match=r"prediction_type: 'odd'; allowed: epsilon, v_prediction, sample"):
        schedule_of(DDPMScheduler(prediction_type="odd"))
