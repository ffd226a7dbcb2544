"""Folders of diffusion models in the layout of diffusers' pipelines, safetensors only.

``unet`` or ``transformer`` holds the network, ``scheduler`` the schedule, ``vae`` the autoencoder of latents (without
one, latents are the pixels), ``tokenizer`` and ``text_encoder`` those of a text-conditioned model. ``model_index.json``
names their classes; its ``null_class`` is the class that stands for "no class" under guidance.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from pipeline.errors import UserError
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import NETWORKS, SCHEDULERS, condition_kind, input_shape, plain_network
from pipeline.images.noise_schedule import NoiseSchedule, schedule_of
from pipeline.images.text_encoder import load_text_encoder
from pipeline.models.foreign import model_settings, refused
from pipeline.models.weights.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, is_adapter
from pipeline.models.weights.lora import load_adapter, save_adapter
from pipeline.storage.atomic import write_json
from pipeline.storage.digests import file_sha256
from pipeline.types import content_hash
from pipeline.types.counts import number_of

MODEL_INDEX = "model_index.json"
# VAE and text encoder, one of them, or neither.
Encoders = Literal["all", "vae", "text", "none"]
_NETWORK_FOLDERS = ("unet", "transformer")
# How diffusers reads a folder: here, and nothing that is pickled.
_READ = {"use_safetensors": True, "local_files_only": True}
_HASHED = ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt")


def load_image_policy(
    path: str | Path, dtype: torch.dtype = torch.float32, *, trained: bool = False, encoders: Encoders = "all"
) -> ImagePolicy:
    """Load the policy in the folder ``path``, in evaluation mode, with all dropout off.

    Args:
        path: of a diffusers pipeline, or of an adapter on one: then the network is a peft model.
        dtype: of all weights; an adapter's own are float32.
        trained: of an adapter: whether it is trainable. Whole networks always are.
        encoders: what to load beside the network; training needs neither once images and prompts are encoded.

    Raises:
        UserError: a folder, class or file that is missing, unknown or cannot be read.
    """
    if is_adapter(path):
        base = load_image_policy(base_of(path), dtype, encoders=encoders)
        base.network.requires_grad_(False)
        return base.with_network(load_adapter(base.network, path, trained=trained).eval())
    folder = Path(path)
    index = image_model_index(folder)
    network = load_network(folder, dtype)
    condition, settings = condition_kind(network), network.config
    scheduler = load_scheduler(folder)
    vae = None
    if encoders in ("all", "vae") and (folder / "vae").is_dir():
        with refused(f"{folder / 'vae'}: cannot load this autoencoder"):
            kind: Any = AutoencoderKL
            vae = kind.from_pretrained(str(folder / "vae"), torch_dtype=dtype, **_READ)
        vae.eval().requires_grad_(False)
    encoder = None
    if encoders in ("all", "text") and condition == "text":
        encoder = load_text_encoder(folder, dtype, width=settings.get("joint_attention_dim"))
    shape = input_shape(network)
    if not (folder / "vae").is_dir() and shape[0] not in (1, 3):
        raise UserError(f"{folder}: no folder vae, and {number_of(shape[0], 'channel')}; allowed without one: 1 or 3")
    count = settings.get("num_class_embeds") or settings.get("num_embeds_ada_norm") or 0
    null = index.get("null_class")
    if "num_embeds_ada_norm" in settings:
        # The table of DiT has one class more than its config says.
        null = count
    elif null is not None:
        count -= 1
    schedule = _fitting(schedule_of(scheduler), network, scheduler)
    return ImagePolicy(network, scheduler, schedule, condition, shape, vae, encoder, count, null, str(folder))


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load the network of a policy's folder alone. Raises ``UserError`` as ``load_image_policy``."""
    name = _network_folder(folder)
    kind = str(model_settings(folder / name / "config.json").get("_class_name"))
    if kind not in NETWORKS:
        raise UserError(f"{folder / name}: _class_name: {kind!r}; allowed: {', '.join(NETWORKS)}")
    with refused(f"{folder / name}: cannot load this network"):
        network = NETWORKS[kind].from_pretrained(str(folder / name), torch_dtype=dtype, **_READ)
    _make_steady(network)
    return network.eval()


def load_scheduler(folder: Path) -> Any:
    """Load the scheduler of a policy's folder. Raises ``UserError`` if it is missing or unknown."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no scheduler/scheduler_config.json, so its levels of noise are unknown")
    settings = model_settings(file)
    return make_scheduler(str(settings.get("_class_name")), settings, str(file))


def make_scheduler(kind: str, settings: Any, where: str) -> Any:
    """Make a scheduler of the class ``kind`` from another one's ``settings``.

    Raises ``UserError``, beginning with ``where``, if the class is unknown or takes them not.
    """
    if kind not in SCHEDULERS:
        raise UserError(f"{where}: {kind!r} is no scheduler here; allowed: {', '.join(SCHEDULERS)}")
    with refused(f"{where}: {kind} cannot be made"):
        make: Any = SCHEDULERS[kind].from_config
        return make(settings)


def save_image_policy(policy: ImagePolicy, folder: Path) -> None:
    """Write ``policy`` for ``load_image_policy``: an adapter alone, or the network and all beside it.

    What is not trained is copied from the folder that the policy was loaded from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = plain_network(policy.network)
    if policy.network is not plain:
        save_adapter(policy.network, folder, policy.path)
        return
    source = Path(policy.path)
    name = _network_folder(source)
    for entry in sorted(source.iterdir()):
        model = entry.is_dir() and (entry / "config.json").is_file() and entry.name not in _NETWORK_FOLDERS
        if model or entry.name == "scheduler" or entry.name.startswith("tokenizer"):
            shutil.copytree(entry, folder / entry.name, dirs_exist_ok=True)
    _save_network(plain, folder / name)
    shutil.copyfile(source / MODEL_INDEX, folder / MODEL_INDEX)


def write_image_policy(network: Any, scheduler: Any, folder: Path, null_class: int | None = None) -> None:
    """Write a new network and its scheduler as a policy's folder; a VAE or text encoder is put beside them."""
    name = "unet" if "UNet" in type(network).__name__ else "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    _save_network(network, folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    known: dict[str, Any] = {"_class_name": "DiffusionPipeline", "null_class": null_class}
    parts = {name: ["diffusers", type(network).__name__], "scheduler": ["diffusers", type(scheduler).__name__]}
    write_json(folder / MODEL_INDEX, {**{k: v for k, v in known.items() if v is not None}, **parts})


def image_policy_digest(path: str | Path) -> str:
    """Return a hash of a policy's configs and weights; of an adapter, with those of the model under it."""
    folder = Path(path)
    if is_adapter(folder):
        own = [[name, file_sha256(folder / name)] for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
        return content_hash([own, image_policy_digest(base_of(folder))], length=64)
    files = sorted(
        {file for pattern in ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt") for file in folder.glob(pattern)}
    )
    return content_hash([[str(file.relative_to(folder)), file_sha256(file)] for file in files], length=64)


def image_model_index(folder: Path) -> dict[str, Any]:
    """Return ``model_index.json``. Raises ``UserError`` if it is missing or no object."""
    file = folder / MODEL_INDEX
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); a policy is a folder in diffusers' layout") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: must be an object")
    return found


def _save_network(network: Any, folder: Path) -> None:
    network.save_pretrained(folder, safe_serialization=True)
    # Where it was loaded from says nothing about it, and would change its digest.
    settings = model_settings(folder / "config.json")
    write_json(folder / "config.json", {k: v for k, v in settings.items() if k != "_name_or_path"})


def _network_folder(folder: Path) -> str:
    found = [name for name in _NETWORK_FOLDERS if (folder / name / "config.json").is_file()]
    if len(found) != 1:
        raise UserError(
            f"{folder}: {number_of(len(found), 'network')}; allowed: one, in a folder {' or '.join(_NETWORK_FOLDERS)}"
        )
    return found[0]


def _make_steady(network: Any) -> None:
    """Let ``network`` compute the same bits in training and in evaluation: no dropout, no dropping of classes."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
        elif isinstance(module, ResnetBlock2D):
            module.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # diffusers does this in training alone, and convolutions round by the layout of their input.
    return tuple(value.contiguous() if isinstance(value, torch.Tensor) else value for value in inputs)


def _fitting(schedule: NoiseSchedule, network: Any, scheduler: Any) -> NoiseSchedule:
    kind, network_kind = type(scheduler).__name__, type(network).__name__
    if "SD3" in network_kind and schedule.parametrisation != "flow":
        raise UserError(
            f"scheduler: {kind} with prediction {schedule.parametrisation}, but {network_kind} predicts a flow; "
            "allowed: FlowMatchEulerDiscreteScheduler"
        )
    return schedule
