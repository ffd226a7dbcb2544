"""The weight handshake of image policies: do sampler and trainer predict the same for fixed noisy inputs?

It has the form of the one of text (``pipeline.models.handshake``): rows of numbers that say what is computed, and a row
of results for each. A row is the seed of a noise, a level, and the ids of a prompt; the input is the noise itself,
scaled as it is at that level.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.images.denoising_scores import predict_rows
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import Conditions, plain_network
from pipeline.images.prompt_ids import ids_of_prompt, prompt_of_ids
from pipeline.models.handshake import write_probe
from pipeline.types import derive_seed

_SEQUENCES = 8
# Numbers of a prediction that are compared, evenly over it.
_VALUES = 16


def image_probe_sequences(policy: ImagePolicy) -> list[list[int]]:
    """Return what is computed: eight noises over all levels, each with a prompt of its own."""
    levels = len(policy.schedule.times)
    prompts: list[str | int | None] = [f"probe {number}" for number in range(_SEQUENCES)]
    if policy.condition == "class":
        prompts = [number % policy.classes for number in range(_SEQUENCES)]
    return [
        [
            derive_seed("image probe", row),
            (2 * row + 1) * levels // (2 * _SEQUENCES),
            *ids_of_prompt(prompt, policy.condition),
        ]
        for row, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def image_probe_values(
    policy: ImagePolicy, sequences: Sequence[Sequence[int]], conditions: Conditions | None = None
) -> list[list[float]]:
    """Return some numbers of the prediction for each of ``sequences``, all of which are one batch.

    ``conditions``: of the sequences, from ``probe_conditions``, for a policy whose encoders are gone.
    """
    device = policy.device
    noise = torch.stack(
        [torch.randn(policy.shape, generator=torch.Generator().manual_seed(row[0])) for row in sequences]
    )
    level = torch.tensor([row[1] for row in sequences])
    noisy = policy.schedule.noisy(torch.zeros_like(noise), noise, level).to(device)
    told = tuple(part.to(device) for part in (conditions or probe_conditions(policy, sequences)))
    times = policy.schedule.times[level].to(device).float()
    found = predict_rows(policy.network, noisy, times, told, None, "float32").float().flatten(1)
    step = max(1, found.shape[1] // _VALUES)
    values: list[list[float]] = found[:, ::step][:, :_VALUES].cpu().tolist()
    return values


def probe_conditions(policy: ImagePolicy, sequences: Sequence[Sequence[int]]) -> Conditions:
    """Return the conditions of ``sequences``, each encoded by itself."""
    encoded = [policy.encode([prompt_of_ids(row[2:], policy.condition)]) for row in sequences]
    return tuple(torch.cat(parts) for parts in zip(*encoded, strict=True))


def save_image_probe(policy: ImagePolicy, folder: Path, conditions: Conditions | None = None) -> None:
    """Write ``folder/probe.json``: predictions of ``policy`` as it is in memory.

    ``conditions``: of its own sequences, for a policy whose encoders are gone.
    """
    sequences = image_probe_sequences(policy)
    dtype = str(plain_network(policy.network).dtype).removeprefix("torch.")
    write_probe(folder, sequences, image_probe_values(policy, sequences, conditions), dtype)
