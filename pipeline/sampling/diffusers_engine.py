"""Diffusion models behind the seam of all samplers: images as responses, each from its own random generator."""

from collections.abc import Iterator, Sequence

import torch

from pipeline.config import DiffusersSampler, SamplingSettings
from pipeline.data.pictures.image_rows import image_response
from pipeline.images.diffusion_engine import DiffusionEngine, DiffusionSettings, ImageRequest, SampledImage
from pipeline.images.image_folder import load_image_policy
from pipeline.images.image_handshake import image_probe_values
from pipeline.images.prompt_ids import prompt_of_ids
from pipeline.models.weights.held_weights import TORCH_DTYPES
from pipeline.sampling.sampler import RequestFeed, SampleRequest, Swap, feed_of, sample_seeds
from pipeline.types import DrawnImage, Response

# Schedulers of diffusers by the names that configs have; auto is that of the policy's folder, or DDIM for denoisers.
SCHEDULER_CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
}


class DiffusersEngine:
    """The engine; see ``Sampler``."""

    def __init__(self, path: str, settings: DiffusersSampler) -> None:
        """Load the policy's folder. Raises ``UserError`` if scheduler or guidance do not fit it."""
        self._settings = settings
        self._load(path)

    @property
    def dtype(self) -> str:
        """Of the weights and of matrix products."""
        return self._settings.dtype

    def sample(
        self, requests: RequestFeed | Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[Response, ...]]:
        """Yield the images of each request, in order; seeds depend on request and number alone."""
        feed = feed_of(requests)
        # As many as fill batches; the last one of all is filled up.
        room = max(1, self._settings.batch // settings.n) * 4
        while taken := feed.take(room, idle=True):
            told = self._engine.policy.condition
            wanted = [
                ImageRequest(prompt_of_ids(request.prompt_ids, told), seed)
                for request in taken
                for seed in sample_seeds(request, settings.n)
            ]
            images: list[Response] = []
            for request, image in zip(wanted, self._engine.sample(wanted), strict=True):
                images.append(_response(image, request.seed))
                if len(images) == settings.n:
                    yield tuple(images)
                    images = []

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Numbers of the network's predictions for fixed noisy inputs; see ``image_handshake``."""
        return image_probe_values(self._engine.policy, sequences)

    def load(self, path: str, fresh: bool = False) -> Swap:
        """Take up the weights of another folder."""
        self._load(path)
        return "restart" if fresh else "reload"

    def close(self) -> None:
        """Free the weights."""
        del self._engine

    def _load(self, path: str) -> None:
        policy = load_image_policy(path, TORCH_DTYPES[self._settings.dtype])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy.network.requires_grad_(False).to(device)
        if policy.vae is not None:
            policy.vae.to(device)
        given = self._settings
        named = given.scheduler
        if named == "auto" and policy.schedule.parametrisation != "flow":
            named = "ddim"
        self._engine = DiffusionEngine(
            policy,
            DiffusionSettings(given.steps, given.guidance, SCHEDULER_CLASSES.get(named), given.eta, given.batch),
        )


def _response(image: SampledImage, seed: int) -> Response:
    channels, height, width = image.latents.shape
    latents = image.latents.float().numpy().astype("<f4").tobytes()
    drawn = DrawnImage(image.png, latents, (channels, height, width), seed)
    return image_response(drawn.id, drawn)
