"""Sampling: as diffusers' own pipelines do, and the same bits for a request wherever it stands."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DiTPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.diffusion_engine import (
    DiffusionEngine,
    DiffusionSettings,
    ImageRequest,
    pixels_of,
    png_of,
)
from pipeline.images.image_folder import load_image_policy, load_network
from pipeline.images.image_policy import ImagePolicy
from tests.support.tiny_diffusion import CLASSES, KINDS, PROMPTS, class_conditional, unconditional


def sampled(policy: ImagePolicy, requests: Sequence[ImageRequest], **settings: Any) -> torch.Tensor:
    engine = DiffusionEngine(policy, DiffusionSettings(**{"steps": 4, "batch": 4, **settings}))
    return torch.stack([one.latents for one in engine.sample(requests)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_own_request_alone(kind: str, tmp_path: Path) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    requests = [ImageRequest(PROMPTS[kind][n % 2], n) for n in range(5)]
    whole = sampled(policy, requests)
    assert torch.equal(sampled(policy, requests[::-1]).flip(0), whole)
    assert torch.equal(sampled(policy, requests[2:3])[0], whole[2])
    other = sampled(policy, requests, batch=1)
    assert torch.allclose(other, whole, atol=1e-4, rtol=1e-3) and not torch.equal(other[0], other[2])
    # In small batches, some convolutions are cut by threads in another way.
    whole, threads = sampled(policy, requests, batch=16), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(sampled(policy, requests, batch=16), whole)
    finally:
        torch.set_num_threads(threads)


def test_unconditional_images_are_those_of_diffusers(tmp_path: Path) -> None:
    policy = load_image_policy(unconditional(tmp_path / "policy"))
    pipeline = DDIMPipeline(load_network(tmp_path / "policy"), policy.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    theirs = pipeline(batch_size=2, generator=generators, eta=0.7, num_inference_steps=6, output_type="np").images
    ours = sampled(policy, [ImageRequest(None, n) for n in range(2)], steps=6, batch=2, eta=0.7)
    # Training reads what a PNG holds.
    assert torch.allclose((ours.permute(0, 2, 3, 1) + 1) / 2, torch.from_numpy(theirs), atol=0.5 / 255 + 1e-5)


def _noise(policy: ImagePolicy, seeds: Sequence[int]) -> torch.Tensor:
    return torch.stack([torch.randn(policy.shape, generator=torch.Generator().manual_seed(n)) for n in seeds])


def test_text_images_under_guidance_are_those_of_diffusers(tmp_path: Path) -> None:
    policy = load_image_policy(KINDS["text"](tmp_path / "policy"))
    assert policy.encoder is not None
    (tokenizer, encoder), prompts = policy.encoder.parts[0], PROMPTS["text"]
    parts = (policy.vae, encoder, tokenizer, policy.network, policy.scheduler)
    pipeline = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompts, latents=_noise(policy, (0, 1)), guidance_scale=3.0, num_inference_steps=5, output_type="latent"
    ).images
    ours = sampled(policy, [ImageRequest(p, n) for n, p in enumerate(prompts)], steps=5, batch=2, guidance=3.0)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-3)


def test_classes_of_a_transformer_under_guidance_are_those_of_diffusers(tmp_path: Path) -> None:
    policy = load_image_policy(KINDS["dit"](tmp_path / "policy"))
    assert policy.null_class == CLASSES
    network = policy.network
    pipeline = DiTPipeline(network, policy.vae, policy.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    classes = torch.tensor([1, 2])
    latents = _noise(policy, (0, 1))
    policy.scheduler.set_timesteps(5)
    for time in policy.scheduler.timesteps:
        both = network(torch.cat([latents] * 2), time.expand(4), torch.cat([classes, torch.full((2,), CLASSES)])).sample
        told, untold = both[:, :4].chunk(2)
        latents = policy.scheduler.step(untold + 2.0 * (told - untold), time, latents).prev_sample.detach()
    ours = sampled(policy, [ImageRequest(1, 0), ImageRequest(2, 1)], steps=5, batch=2, guidance=2.0)
    assert torch.allclose(ours, latents, atol=1e-4, rtol=1e-3)


def test_flows_under_guidance_are_those_of_diffusers(tmp_path: Path) -> None:
    policy = load_image_policy(KINDS["flow"](tmp_path / "policy"))
    assert policy.encoder is not None
    (words, one), (more, other) = policy.encoder.parts
    pipeline = StableDiffusion3Pipeline(
        policy.network, policy.scheduler, policy.vae, one, words, other, more, None, None
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS["flow"],
        latents=_noise(policy, (0, 1)),
        guidance_scale=3.0,
        num_inference_steps=5,
        output_type="latent",
        height=16,
        width=16,
    ).images
    ours = sampled(policy, [ImageRequest(p, n) for n, p in enumerate(PROMPTS["flow"])], steps=5, batch=2, guidance=3.0)
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "scheduler",
    [
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_other_schedulers_sample_and_stand_in_the_key(scheduler: str, tmp_path: Path) -> None:
    policy = load_image_policy(class_conditional(tmp_path / "policy"))
    requests = [ImageRequest(n % CLASSES, n) for n in range(3)]
    found = sampled(policy, requests, scheduler=scheduler, steps=6)
    assert torch.isfinite(found).all()
    assert torch.equal(sampled(policy, requests[1:2], scheduler=scheduler, steps=6)[0], found[1])
    identity = DiffusionEngine(policy, DiffusionSettings(scheduler=scheduler)).identity
    assert identity["scheduler"] == scheduler
    assert identity != DiffusionEngine(policy, DiffusionSettings()).identity


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("unconditional", {"guidance": 2.0}, "sampler.guidance: 2, but the policy is unconditional; allowed: 1"),
        ("class", {"guidance": 2.0}, "null_class: missing"),
        ("class", {"scheduler": "Odd"}, "sampler.scheduler: 'Odd' is no scheduler here; allowed: DDIM"),
        ("class", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "expects prediction flow, but .* epsilon"),
        ("class", {"scheduler": "EulerDiscreteScheduler", "eta": 0.5}, "sampler.eta: 0.5, but EulerDiscr"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    kind: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    with pytest.raises(UserError, match=message):
        DiffusionEngine(policy, DiffusionSettings(**settings))


@pytest.mark.parametrize(
    ("kind", "prompt"), [("class", CLASSES), ("class", "x"), ("class", -1), ("text", 3), ("unconditional", "a")]
)
def test_prompts_of_another_kind_are_refused(kind: str, prompt: Any, tmp_path: Path) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    with pytest.raises(UserError, match=r"^prompt: .*; ?allowed:|^prompt: "):
        policy.encode([prompt])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_its_pixels_back(channels: int) -> None:
    levels = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0))
    png = png_of(levels.float() / 127.5 - 1)
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size) == ("PNG", (7, 5))
    assert torch.equal(((pixels_of(png) + 1) * 127.5).round().long(), levels)


def test_latents_of_an_image_come_back_through_the_autoencoder(tmp_path: Path) -> None:
    policy = load_image_policy(KINDS["text"](tmp_path / "policy"))
    assert isinstance(policy.vae, AutoencoderKL)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = policy.latents(pixels)
    assert tuple(latents.shape[1:]) == policy.shape
    scaled = latents / policy.vae.config["scaling_factor"]
    assert torch.allclose(policy.pixels(latents), policy.vae.decode(scaled).sample.clamp(-1, 1))
