"""Training steps of a small diffusion model on preferences, ours or those of diffusers' script for Diffusion-DPO.

The script's side is written from its formula: each step encodes the images of both sides and the captions, draws one
noise and one level for a pair, predicts with the policy and, without gradient, with the reference, which is the policy
with its adapter off, or a frozen copy; -log sigmoid(-beta/2 (difference of differences)); clip 1; AdamW.
"""

import copy
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from transformers import CLIPTextModel

from pipeline.config import Lora, Optimisation
from pipeline.config.images.scoring import ImageScore
from pipeline.images.denoising_scores import DenoisingScores, ImageTable, image_ids, prompt_of_draws
from pipeline.images.image_adapter import add_image_adapter
from pipeline.images.image_folder import load_image_policy, write_image_policy
from pipeline.images.image_policy import ImagePolicy
from pipeline.losses import load_preset
from pipeline.training.batches.examples import Example
from pipeline.training.reference import reference_logps, with_references
from pipeline.training.train import Trainee, train
from tests.benchmarks.isolated import measure_apart, serve
from tests.benchmarks.process_memory import PeakMemory
from tests.support.tiny_diffusion import text_config, unet, vp, words

RATE, BETA, PIXELS = 1e-6, 2000.0, 64
PROMPTS = [f"{colour} {shape}" for colour in ("red", "blue") for shape in ("dot", "bar", "ring", "cross")]
ADAPTER = Lora(rank=8, alpha=8, dropout=0.0, target_modules=("to_q", "to_k", "to_v", "to_out.0"))


def main() -> None:
    """Measure the job in a folder; see ``isolated``."""
    serve(measure)


def measure(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return CPU seconds a step (median) and of the preparation, peak MiB, and losses; one thread.

    Job: ``cell``, ``side``, ``pairs`` a step, ``steps``; of the side "encode", the file ``to``.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (text_model if job["cell"] == "text" else pixel_model)(folder / "policy")
    if job["side"] == "encode":
        return encode(folder / "policy", images_of(job), job)
    prepared = folder / "prepared.safetensors"
    encoded: dict[str, Any] = {}
    if job["side"] == "ours":
        # Another stage of a run, so another process.
        encoded = measure_apart("tests.benchmarks.diffusion_steps", {**job, "side": "encode", "to": str(prepared)})
    images = images_of(job) if job["side"] == "script" else None
    peak = PeakMemory(cuda=False)
    adapter = job["cell"] == "text"
    if images is None:
        found = ours(folder / "policy", prepared, job["pairs"], adapter=adapter)
    else:
        found = script(load_image_policy(folder / "policy"), images, job["pairs"], adapter=adapter)
    return {"encoding": 0.0, "reference": 0.0, **found, **encoded, "mib": peak.above()}


def images_of(job: dict[str, Any]) -> torch.Tensor:
    """Both images of each pair, one after the other, [2 N, 3, H, W]."""
    size = PIXELS if job["cell"] == "text" else 8
    draw = torch.Generator().manual_seed(1)
    return torch.rand(2 * job["pairs"] * job["steps"], 3, size, size, generator=draw) * 2 - 1


def encode(path: Path, images: torch.Tensor, job: dict[str, Any]) -> dict[str, Any]:
    """Write all latents and the states of all captions to ``job["to"]``; return the seconds."""
    policy = load_image_policy(path)
    started = time.process_time()
    latents = torch.cat([policy.latents(part) for part in images.split(2 * job["pairs"])])
    conditions = policy.encode(asked(policy))
    seconds = time.process_time() - started
    save_file({"latents": latents.contiguous(), "conditions": conditions[0].contiguous()}, job["to"])
    return {"encoding": seconds}


def text_model(folder: Path) -> None:
    """Stable Diffusion's layout. Encoding costs 0.9 of the network's pass, 1.4 in Stable Diffusion 1.5."""
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    write_image_policy(network, vp(beta_schedule="scaled_linear", steps_offset=1), folder)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=PIXELS,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(text_config()).save_pretrained(folder / "text_encoder")
    words(folder / "tokenizer")


def pixel_model(folder: Path) -> None:
    """The class-conditional network of the small image task."""
    network = unet(len(PROMPTS), block_out_channels=(32, 48), norm_num_groups=8)
    write_image_policy(network, vp(), folder)


def asked(policy: ImagePolicy) -> list[Any]:
    """Captions or classes, whichever the policy reads."""
    return PROMPTS if policy.condition == "text" else [*range(len(PROMPTS))]


def ours(path: Path, prepared: Path, size: int, *, adapter: bool) -> dict[str, Any]:
    """Score the reference once, then train, in passes of half the batch."""
    policy = load_image_policy(path, encoders="none")
    stored = load_file(prepared)
    table = ImageTable(stored["latents"], (stored["conditions"],))
    scores = DenoisingScores(policy, table, ImageScore(score_scale="mean_error"), rows=size)
    examples = [
        Example.pair(f"{n}", prompt_of_draws(0, f"{n}", n % len(PROMPTS)), image_ids(2 * n, 1), image_ids(2 * n + 1, 1))
        for n in range(len(table.latents) // 2)
    ]
    started = time.process_time()
    examples = with_references(examples, [reference_logps(scores, examples, size)])
    times, losses = [time.process_time()], []
    seconds = times[0] - started
    if adapter:
        # As in a run, whose reference is scored before there is an adapter.
        scores = scores.with_network(add_image_adapter(policy.network, ADAPTER, 0))
    settings = Optimisation(
        batch_size=size, micro_batch_size=size // 2, learning_rate=RATE, schedule="constant", warmup=0
    )

    def step(report: Any) -> None:
        times.append(time.process_time())
        losses.append(report.loss)

    train(Trainee(scores), examples, load_preset("dpo", beta=BETA), settings, seed=0, on_step=step)
    return {**_told(times, losses), "reference": seconds}


def script(policy: ImagePolicy, images: torch.Tensor, size: int, *, adapter: bool) -> dict[str, Any]:
    """Both models' passes in every step, and the encoders' where the model has them."""
    network, scheduler = policy.network, policy.scheduler
    frozen = None
    if adapter:
        network = add_image_adapter(network, ADAPTER, 0)
    else:
        frozen = copy.deepcopy(network).requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, fused=True)
    network.train()
    times, losses = [time.process_time()], []
    for start in range(0, len(images), 2 * size):
        part = images[start : start + 2 * size]
        pixels = torch.cat([part[0::2], part[1::2]])
        latents = policy.latents(pixels)
        prompts = [asked(policy)[(start // 2 + n) % len(PROMPTS)] for n in range(size)]
        conditions = tuple(c.repeat(2, *[1] * (c.ndim - 1)) for c in policy.encode(prompts))
        noise = torch.randn(size, *latents.shape[1:]).repeat(2, 1, 1, 1)
        level = torch.randint(0, scheduler.config["num_train_timesteps"], (size,)).repeat(2)
        noisy = scheduler.add_noise(latents, noise, level)
        told = (network(noisy, level, conditions[0]).sample - noise).square().mean((1, 2, 3))
        with torch.no_grad():
            if frozen is None:
                with network.disable_adapter():
                    kept = (network(noisy, level, conditions[0]).sample - noise).square().mean((1, 2, 3))
            else:
                kept = (frozen(noisy, level, conditions[0]).sample - noise).square().mean((1, 2, 3))
        gap = (told[:size] - told[size:]) - (kept[:size] - kept[size:])
        loss = -logsigmoid(-BETA / 2 * gap).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        times.append(time.process_time())
    return _told(times, losses)


def _told(times: list[float], losses: list[float]) -> dict[str, Any]:
    each = [later - earlier for earlier, later in pairwise(times[1:])]
    return {"step": median(each), "first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses)}


if __name__ == "__main__":
    main()
