"""The arithmetic of a plan's disk: bytes of a run folder by stage, from counts; of image runs, from the policy's files.

Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.planning.arithmetic import MOMENT_BYTES, WEIGHT_BYTES, ParameterCounts, Round
from flows.planning.cards.recipes import recipe_of
from pipeline.config import DiffusionPolicy, DotsData, RunConfig
from pipeline.images.prompt_ids import network_settings
from pipeline.models.weights.weight_format import frozen_format
from pipeline.storage.run_folder import RunFolder

# Bytes of a stored token's id, log-probability and piece of text, and of a row's id, in parquet with zstd. It shrinks
# ids and text, but hardly the log-probabilities. Within 10 % of what rounds of the quickstart wrote.
ID_BYTES, LOGP_BYTES, TEXT_BYTES, ROW_BYTES = 2, 4, 1, 64
# In the file that training reads at random places; it is deleted when training ends.
ARROW_ID_BYTES = 4
# Of a row besides its image: prompt, ids, numbers.
_ROW = 1024
# Pixels a side of one latent of an autoencoder.
_UPSCALED = 8
_FLOAT, _CHANNELS = 4, 3
# The parts of a round that retention removes.
_WEIGHTS = {"policy", "optimiser", "average"}


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How a round's policy is written.

    Attributes:
        item: bytes of a weight in its files.
        step_item: bytes of a weight in a checkpoint, as it is stepped.
        masters: whether the float32 weights that its own are rounded from are written beside them.
        alone: whether its files hold only the adapter, in float32.
    """

    item: int = WEIGHT_BYTES
    step_item: int = WEIGHT_BYTES
    masters: bool = False
    alone: bool = False


FLOAT32_FILES = StoredWeights()


def stored_weights(config: RunConfig, origin: str | Path) -> StoredWeights:
    """How the config's rounds write policies; ``origin``: folder of the start policy."""
    training = config.training
    step_item = recipe_of(config, training, origin).step_item
    narrow = step_item < WEIGHT_BYTES or frozen_format(config, origin).dtype != "float32"
    full = training.lora is None
    return StoredWeights(
        2 if narrow else WEIGHT_BYTES,
        step_item,
        masters=full and narrow and step_item == WEIGHT_BYTES,
        alone=training.lora is not None and training.lora.lifetime == "run",
    )


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes of a run folder and of its reference cache, by stage: at the start, per round, and while it trains.

    ``policies``: how many rounds have their weights on disk at a time; None: all. ``masters``: the float32 weights
    beside those of a round that are rounded to 16 bits; those of two rounds are there while a new one is made.
    """

    start: Mapping[str, int]
    round: Mapping[str, int]
    passing: Mapping[str, int] = field(default_factory=dict)
    policies: int | None = None
    masters: int = 0

    def whole(self, rounds: int) -> int:
        """The most that the run folder holds at any time."""
        kept = rounds if self.policies is None else min(rounds, self.policies)
        of_rounds = sum(size * (kept if name in _WEIGHTS else rounds) for name, size in self.round.items())
        wide = self.masters * min(2, rounds + ("policy" in self.start))
        return sum(self.start.values()) + of_rounds + wide + sum(self.passing.values())


def disk_use(
    counts: Round,
    parameters: ParameterCounts,
    *,
    made_start: bool,
    carried: bool,
    averaged: bool,
    checkpoints: bool,
    best: bool,
    iterative: bool,
    policies: int | None = None,
    state_bytes: int = MOMENT_BYTES,
    cached: bool = True,
    stored: StoredWeights = FLOAT32_FILES,
    advantages: bool = False,
) -> DiskUse:
    """Bytes that a run writes.

    Args:
        counts: of one round.
        parameters: of the policy; adapters are merged into what is saved.
        made_start: whether the run trains, and so stores, the start policy.
        carried: whether AdamW's state is kept.
        averaged: whether an average of policies is stored with each policy.
        checkpoints: whether training saves some within a round.
        best: whether it keeps the weights of its best evaluation so far.
        iterative: whether rounds sample and label.
        policies: see ``DiskUse``.
        state_bytes: optimiser state per weight.
        cached: whether reference log-probabilities are also kept for other runs.
        stored: how a policy's weights are written.
        advantages: whether advantages and returns of the examples' tokens are stored.
    """
    token = ID_BYTES + LOGP_BYTES + TEXT_BYTES
    prompt = counts.prompt_tokens * (ID_BYTES + TEXT_BYTES)
    base = parameters.total - (parameters.trained if parameters.trained < parameters.total else 0)
    policy = base * stored.item
    stepped = parameters.trained + parameters.beside
    group = prompt + counts.responses * counts.response_tokens * token
    example = counts.example_prompt_tokens * (ID_BYTES + TEXT_BYTES)
    example += counts.continuations * counts.example_response_tokens * token
    scored = counts.examples * counts.continuations * counts.example_response_tokens * LOGP_BYTES
    reference = counts.references * scored + counts.examples * ROW_BYTES if counts.references else 0
    held_out = counts.held_out * (2 * prompt + counts.held_out_responses * counts.response_tokens * token)
    each: dict[str, float] = {
        "samples": counts.prompts * group if iterative else 0,
        "labels": counts.prompts * group if iterative else 0,
        "pairs": counts.examples * example,
        "reference": reference,
        "reference cache": reference if cached else 0,
        "advantages": 2 * scored + counts.examples * ROW_BYTES if advantages else 0,
        "policy": (parameters.trained * WEIGHT_BYTES if stored.alone else policy) + parameters.beside * WEIGHT_BYTES,
        "optimiser": stepped * state_bytes if carried else 0,
        "average": policy if averaged else 0,
        "evaluation": 2 * held_out,
    }
    # While a checkpoint is written, the previous one is still there.
    numbers = counts.references + 2 * advantages
    rows = counts.continuations * counts.example_response_tokens * (ARROW_ID_BYTES + numbers * LOGP_BYTES)
    # Beside the new best, those that the newest checkpoint counts on.
    kept = stepped * (stored.step_item + (state_bytes if carried else 0)) * (2 if checkpoints else 1)
    passing = {
        "best weights": kept if best else 0,
        "checkpoints": 2 * stepped * (stored.step_item + state_bytes) if checkpoints else 0,
        "examples": round(counts.examples * (counts.example_prompt_tokens * ARROW_ID_BYTES + rows)),
    }
    start = {"policy": policy if made_start else 0, "evaluation": round(2 * held_out)}
    return DiskUse(
        {name: size for name, size in start.items() if size},
        {name: round(size) for name, size in each.items() if size},
        {name: size for name, size in passing.items() if size},
        policies,
        base * WEIGHT_BYTES * (2 if averaged else 1) if stored.masters else 0,
    )


def image_stage_bytes(run: RunFolder, config: RunConfig, round_: int, name: str) -> int:
    """Bound the bytes that a stage of a run of images writes; 0 where they are few."""
    prompts = _count(run, "prompts")
    drawn = min(config.prompts_per_round or prompts, prompts) * config.sampling.n
    match name:
        case "data":
            pictures = config.prompts.pictures if isinstance(config.prompts, DotsData) else 0
            return pictures * 2 * _ROW
        case "samples":
            return drawn * (_ROW + _image_bytes(run, config))
        case "evaluation_samples":
            return _count(run, "held_out") * config.evaluation.samples * (_ROW + _image_bytes(run, config))
        case "policy" if round_ > 0 or isinstance(config.policy, DiffusionPolicy):
            # The weights, and a checkpoint with the optimiser's state or the weights that a failed step leaves.
            return 4 * _weight_bytes(_folder(run, config))
        case _:
            return drawn * _ROW


def _count(run: RunFolder, table: str) -> int:
    manifest = run.stage(0, "data").manifest()
    found = None if manifest is None else manifest.metrics.get(table)
    return found if isinstance(found, int) else 0


def _folder(run: RunFolder, config: RunConfig) -> Path:
    return Path(config.policy.path) if isinstance(config.policy, DiffusionPolicy) else run.stage(0, "policy").folder


def _image_bytes(run: RunFolder, config: RunConfig) -> int:
    """Latents as they are stored, and a file that does not compress."""
    folder = _folder(run, config)
    settings = network_settings(folder)
    size = settings.get("sample_size")
    sizes = [one for one in (size if isinstance(size, list) else [size]) if isinstance(one, int)]
    side = max(sizes, default=0)
    channels = settings.get("in_channels")
    latents = side * side * (channels if isinstance(channels, int) else _CHANNELS)
    pixels = (side * (_UPSCALED if (folder / "vae").is_dir() else 1)) ** 2 * _CHANNELS
    return latents * _FLOAT + pixels


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
