"""Sampling from diffusion models by the schedulers of diffusers.

Each image has a random generator of its own, and every batch has the same shape: a smaller one is filled up. An image's
bits then depend on its own request alone, not on its neighbours or its place.
"""

import inspect
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from pydantic import JsonValue
from torch import Tensor

from pipeline.errors import UserError
from pipeline.images.denoising_scores import predict_rows
from pipeline.images.image_folder import make_scheduler
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import Conditions
from pipeline.images.noise_schedule import schedule_of
from pipeline.models.weights.weight_format import Precision


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """How images are sampled.

    Attributes:
        steps: of the scheduler.
        guidance: w of classifier-free guidance, e0 + w (e - e0); 1: none.
        scheduler: class of diffusers; None: that of the policy's folder.
        eta: share of fresh noise in each step of DDIM.
        batch: images computed together.
        dtype: of matrix products (autocast).
    """

    steps: int = 50
    guidance: float = 1.0
    scheduler: str | None = None
    eta: float = 0.0
    batch: int = 16
    dtype: Precision = "float32"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """An image to sample: its prompt, as in ``ImagePolicy.encode``, and the seed of its noise."""

    prompt: str | int | None
    seed: int


@dataclass(frozen=True, slots=True)
class SampledImage:
    """A sampled image.

    Attributes:
        latents: [C, H, W] float32, what training reads; without a VAE, the pixels of ``png`` in [-1, 1].
        png: the file's bytes.
    """

    latents: Tensor
    png: bytes


class DiffusionEngine:
    """Samples from one policy, whose network may be replaced between rounds."""

    def __init__(self, policy: ImagePolicy, settings: DiffusionSettings) -> None:
        """See the class.

        Raises:
            UserError: a scheduler that is unknown or does not fit what the network predicts, guidance without a
                condition for "nothing", or eta where the scheduler has none.
        """
        self.policy, self.settings = policy, settings
        own = policy.scheduler
        kind = settings.scheduler or type(own).__name__
        self._scheduler = make_scheduler(kind, own.config, "sampler.scheduler")
        trains = schedule_of(self._scheduler).parametrisation
        if trains != policy.schedule.parametrisation:
            raise UserError(
                f"sampler.scheduler: {kind} expects prediction {trains}, but the policy predicts "
                f"{policy.schedule.parametrisation}; allowed: a scheduler of that kind, such as {type(own).__name__}"
            )
        takes = inspect.signature(self._scheduler.step).parameters
        if settings.eta and "eta" not in takes:
            raise UserError(f"sampler.eta: {settings.eta:g}, but {kind} has none; allowed: 0, or DDIMScheduler")
        self._options = {"eta": settings.eta} if "eta" in takes else {}
        self._random = "generator" in takes
        self._null: Conditions | None = None
        if settings.guidance != 1:
            if policy.condition == "none":
                raise UserError(f"sampler.guidance: {settings.guidance:g}, but the policy is unconditional; allowed: 1")
            self._null = policy.encode([None])
        self._encoded: dict[str | int | None, Conditions] = {}

    @property
    def identity(self) -> dict[str, JsonValue]:
        """What decides its images besides the weights; the scheduler's settings as they are read back."""
        settings = {k: v for k, v in dict(self._scheduler.config).items() if not k.startswith("_")}
        plain = {k: v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in settings.items()}
        own: dict[str, JsonValue] = {
            "scheduler": type(self._scheduler).__name__,
            "steps": self.settings.steps,
            "guidance": self.settings.guidance,
            "eta": self.settings.eta,
            "batch": self.settings.batch,
            "dtype": self.settings.dtype,
        }
        return {**own, "settings": {**plain}}

    def replace_network(self, policy: ImagePolicy) -> None:
        """Sample from ``policy`` from now on; it has the same schedule, shape and conditions."""
        self.policy = policy

    def sample(self, requests: Sequence[ImageRequest]) -> Iterator[SampledImage]:
        """Yield an image for each request, in their order."""
        size = self.settings.batch
        for start in range(0, len(requests), size):
            part = list(requests[start : start + size])
            filled = part + [part[0]] * (size - len(part))
            latents = self._denoised(filled)
            pixels = self.policy.pixels(latents)
            for row in range(len(part)):
                png = png_of(pixels[row])
                kept = latents[row] if self.policy.vae is not None else pixels_of(png)
                yield SampledImage(kept.float().cpu().contiguous().clone(), png)

    @torch.no_grad()
    def _denoised(self, requests: Sequence[ImageRequest]) -> Tensor:
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        noise = torch.stack([torch.randn(self.policy.shape, generator=g) for g in generators])
        conditions = self._conditions_of(requests)
        scheduler, device = self._scheduler, self.policy.device
        scheduler.set_timesteps(self.settings.steps)
        latents = (noise * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1)).to(
            device
        )
        options = {**self._options, **({"generator": generators} if self._random else {})}
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
            prediction = self._guided(scaled, time, conditions)
            latents = scheduler.step(prediction, time, latents, return_dict=False, **options)[0]
        found: Tensor = latents
        return found

    def _guided(self, noisy: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        times = time.to(noisy.device).expand(len(noisy)).float()
        network, dtype = self.policy.network, self.settings.dtype
        told = predict_rows(network, noisy, times, conditions, None, dtype).float()
        if self._null is None:
            return told
        null = tuple(c.expand(len(noisy), *c.shape[1:]).to(noisy.device) for c in self._null)
        untold = predict_rows(network, noisy, times, null, None, dtype).float()
        return untold + self.settings.guidance * (told - untold)

    def _conditions_of(self, requests: Sequence[ImageRequest]) -> Conditions:
        for request in requests:
            if request.prompt not in self._encoded:
                self._encoded[request.prompt] = self.policy.encode([request.prompt])
        rows = [self._encoded[request.prompt] for request in requests]
        return tuple(torch.cat(parts).to(self.policy.device) for parts in zip(*rows, strict=True))


def png_of(pixels: Tensor) -> bytes:
    """Return the PNG of one image [C, H, W] in [-1, 1], grey or in colour."""
    levels = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    plain = levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).contiguous().numpy()
    written = io.BytesIO()
    Image.fromarray(plain).save(written, format="PNG")
    return written.getvalue()


def pixels_of(png: bytes) -> Tensor:
    """Return an image file's pixels [C, H, W] in [-1, 1]; one that is not grey is read as RGB."""
    with Image.open(io.BytesIO(png)) as image:
        plain = image if image.mode == "L" else image.convert("RGB")
        data = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8)
        levels = data.view(plain.height, plain.width, -1)
    return levels.permute(2, 0, 1).float() / 127.5 - 1
