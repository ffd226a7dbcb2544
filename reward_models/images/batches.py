"""Forward passes over images in batches of one shape, so that an image's label depends on no other image."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.errors import UserError
from pipeline.models.foreign import refused

T = TypeVar("T")


def full_batches(items: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yield batches of exactly ``size``, and how many of each are asked for: the last is filled with its last item.

    Matrix products of another shape round otherwise, so a label would depend on how many images came with it.

    >>> list(full_batches("abcde", 3))
    [(['a', 'b', 'c'], 3), (['d', 'e', 'e'], 2)]
    """
    for start in range(0, len(items), size):
        part = [*items[start : start + size]]
        yield part + part[-1:] * (size - len(part)), len(part)


def image_processor(path: str, field: str) -> Any:
    """Load the folder's image processor, the one that computes with PIL. Raises ``UserError``."""
    from transformers import AutoImageProcessor

    if not (Path(path) / "preprocessor_config.json").is_file() and not (Path(path) / "processor_config.json").is_file():
        raise UserError(f"{field}.path: {path}: no preprocessor_config.json, which says how images are scaled")
    with refused(f"{field}.path: {path}: cannot read the image processor"):
        loader: Any = AutoImageProcessor
        return loader.from_pretrained(path, backend="pil", trust_remote_code=False)


def image_model(load: Callable[..., Any], path: str, dtype: str, field: str) -> Any:
    """Load a model's weights from safetensors onto the accelerator, frozen. Raises ``UserError``."""
    with refused(f"{field}.path: {path}: cannot be loaded"):
        model, report = load(path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{field}.path: {path}: not a trained model: it lacks the weights {missing}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.requires_grad_(False).eval().to(device)
