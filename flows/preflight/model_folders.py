"""Checks of model folders by their files, config.json and the headers of their weights. Loads no weights."""

import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import (
    DiffusersSampler,
    DiffusionPolicy,
    DotsData,
    ImageData,
    RunConfig,
    SamplerSettings,
    ScratchDiffusion,
    ServerSampler,
    VllmSampler,
)
from pipeline.errors import UserError
from pipeline.images.prompt_ids import condition_told, network_settings, told_in
from pipeline.models.foreign import TOKENIZER_FILES, model_settings
from pipeline.models.loading.ordinary_folder import is_ordinary_model
from pipeline.models.loading.ordinary_tensors import has_ordinary_tensors
from pipeline.models.loading.rope import require_steady_rope, text_settings
from pipeline.models.loading.weight_files import require_no_adapter_beside, tensor_shapes
from pipeline.models.weights.adapter_folder import base_of
from pipeline.types import Prompt

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_DIFFUSION = "model_index.json"


def check_folder(path: Path, field: str) -> None:
    """Raise ``UserError`` for a folder that is missing or lacks config or weights; accept hub names."""
    if not path.exists():
        # A hub name is `owner/model`; if there is a folder `owner` here, it is more likely a typo.
        if path.is_absolute() or str(path).startswith((".", "~")) or len(path.parts) != 2 or path.parent.is_dir():
            raise UserError(f"{field}: {path}: no such model folder")
        print(f"{field}: {path}: no such folder here; using it as a hub name", file=sys.stderr)
        return
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(f"{field}: {path}: an adapter (LoRA), not a whole model; {_base(path)}")
    require_no_adapter_beside(path, f"{field}: ")
    if (path / _DIFFUSION).is_file():
        raise UserError(
            f"{field}: {path}: a diffusion pipeline ({_DIFFUSION}), not a model of its own; allowed are folders with "
            "the config.json and the weights of one model"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{field}: {path}: no config.json in this model folder")
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        raise UserError(f"{field}: {path}: no safetensors weights in this model folder (other formats are not read)")
    tensor_shapes(path, f"{field}: ")


def check_policy_folder(path: Path, field: str, longest: int, *, trust_remote_code: bool) -> None:
    """Raise ``UserError`` as ``check_folder`` does, or if no exact language model can be loaded from there.

    ``longest``: tokens of the longest prompt and response that it will read.
    """
    check_folder(path, field)
    if path.exists() and not _is_ordinary(path, field):
        from pipeline.models.loading.language_model import require_language_model

        require_language_model(str(path), field, longest, trust_remote_code=trust_remote_code)


def _is_ordinary(path: Path, field: str) -> bool:
    """Whether a folder is known, without asking transformers, to hold all of an exact language model."""
    settings = model_settings(path / "config.json")
    return is_ordinary_model(path) and has_ordinary_tensors(settings, tensor_shapes(path, f"{field}: "))


def check_engine(path: Path, sampler: SamplerSettings) -> None:
    """Raise ``UserError`` if vLLM surely cannot start on the policy's folder with what is installed here."""
    starts_vllm = isinstance(sampler, VllmSampler) or (isinstance(sampler, ServerSampler) and sampler.base_url is None)
    if isinstance(sampler, VllmSampler | ServerSampler) and starts_vllm:
        _require_ranks(path, sampler)
    if not starts_vllm or not isinstance(model_settings(path / "config.json").get("vision_config"), dict):
        return
    if find_spec("torchvision") is None:
        raise UserError(
            f"sampler.kind: {sampler.kind}: {path} is a model for images and text (vision_config), which vLLM starts "
            "only with the package torchvision, and that is not installed; install the build of torchvision that fits "
            "your torch, or set sampler.kind=transformers"
        )


def _require_ranks(path: Path, sampler: VllmSampler | ServerSampler) -> None:
    """Raise ``UserError`` if the model's heads or layers cannot be cut over so many cards."""
    shape = text_settings(path)
    heads, layers = shape.get("num_attention_heads"), shape.get("num_hidden_layers")
    ranks, stages = sampler.tensor_parallel_size, sampler.pipeline_parallel_size
    if isinstance(heads, int) and heads > 0 and heads % ranks:
        allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UserError(
            f"sampler.tensor_parallel_size: {ranks} does not divide the {heads} attention heads of {path}; allowed: "
            f"{allowed}"
        )
    if isinstance(layers, int) and stages > max(layers, 1):
        raise UserError(
            f"sampler.pipeline_parallel_size: {stages} groups of cards for the {layers} layers of {path}; allowed: 1 "
            f"to {layers}"
        )


def check_classifier_start(path: Path, section: str, name: str, longest: int) -> None:
    """Raise ``UserError`` if a classifier of conversations of ``longest`` tokens cannot be trained from a folder.

    ``section``: of the config, with the setting ``name`` and max_tokens; empty for the whole config.
    """
    field, most = (f"{section}.{one}".lstrip(".") for one in (name, "max_tokens"))
    check_folder(path, field)
    require_steady_rope(f"{field}: {path}", text_settings(path), longest, most)


def check_tokenizer_files(path: Path, field: str) -> None:
    """Raise ``UserError`` for a folder without any tokenizer file."""
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{field}: {path}: no tokenizer files in this model folder")


def _base(path: Path) -> str:
    """Say how to make a whole model of the adapter in ``path``."""
    base = model_settings(path / "adapter_config.json").get("base_model_name_or_path")
    onto = repr(base)[:200] if isinstance(base, str) and base else "the model that it was trained on"
    return f"merge it into {onto} first (peft: model.merge_and_unload()) and name the merged folder"


def check_image_policy(config: RunConfig) -> None:
    """Refuse an image policy that cannot be loaded, and a sampler that does not fit what it predicts or is told.

    Raises ``UserError``.
    """
    policy, sampler = config.policy, config.sampler
    if not isinstance(sampler, DiffusersSampler):
        return
    if find_spec("diffusers") is None:
        raise UserError("modality: image needs diffusers: pip install 'prefloop[images]'")
    if isinstance(policy, DiffusionPolicy):
        told, predicts = _of_folder(Path(policy.path))
        _require_size(config, Path(policy.path))
    else:
        assert isinstance(policy, ScratchDiffusion), "the config's validator requires it"
        told, predicts = "class" if isinstance(config.prompts, DotsData) else "none", policy.predicts
    if sampler.scheduler != "auto" and (sampler.scheduler == "flow") != (predicts == "flow"):
        allowed = "auto or flow" if predicts == "flow" else "auto, ddim, ddpm, euler or dpm"
        raise UserError(
            f"sampler.scheduler: {sampler.scheduler}, but the policy predicts {predicts}; allowed: {allowed}"
        )
    if sampler.eta and predicts == "flow":
        raise UserError(f"sampler.eta: {sampler.eta:g}, but flow matching has no such steps; allowed: 0")
    if sampler.guidance != 1 and told == "none":
        raise UserError(f"sampler.guidance: {sampler.guidance:g}, but the policy is told nothing; allowed: 1")


def check_image_prompt(config: RunConfig, prompt: Prompt) -> None:
    """Raise ``UserError`` if the policy cannot be told what ``prompt`` asks for."""
    if isinstance(config.policy, DiffusionPolicy):
        condition_told(prompt, told_in(config.policy.path))


def _of_folder(folder: Path) -> tuple[str, str]:
    """What the policy in ``folder`` is told, and what it predicts. Raises ``UserError``."""
    if not folder.is_dir():
        raise UserError(f"policy.path: {folder}: no such model folder")
    told, file = told_in(folder), folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise UserError(f"policy.path: {file}: missing, so the levels of noise are unknown")
    settings = model_settings(file)
    flows = str(settings.get("_class_name")).startswith("FlowMatch")
    return told, "flow" if flows else str(settings.get("prediction_type") or "epsilon")


def _require_size(config: RunConfig, folder: Path) -> None:
    """Raise ``UserError`` if the policy draws another size than given images have."""
    drawn = _drawn_size(folder)
    for name, data in (("prompts", config.prompts), ("pairs", config.pairs)):
        if isinstance(data, ImageData) and drawn is not None and tuple(data.size) != drawn:
            given, wanted = (" x ".join(map(str, size)) for size in (data.size, drawn))
            raise UserError(
                f"{name}.size: {given}, but {folder} draws {wanted} pixels (height, width); allowed: {wanted}"
            )


def _drawn_size(folder: Path) -> tuple[int, int] | None:
    """Return the height and width in pixels of a diffusion policy's images; None if its files do not say."""
    side = network_settings(folder).get("sample_size")
    sides = side if isinstance(side, list) else [side, side]
    blocks = model_settings(Path(base_of(folder)) / "vae" / "config.json").get("block_out_channels")
    # Each level of an autoencoder but the last halves the image.
    times = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 1
    match sides:
        case [int(height), int(width)]:
            return height * times, width * times
    return None
