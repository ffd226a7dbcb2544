"""Whether a folder's tensors are those of the model that its config.json describes, before any weight is read.

transformers itself matches the names: its loader runs on tensors without values. So old names, tied weights, fused
experts and names that it knows to leave out count as they will when the model is loaded.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging

from pipeline.errors import UserError, first_lines
from pipeline.models.foreign import refused
from pipeline.models.loading.weight_files import Shapes
from pipeline.types.counts import number_of

# Masks and frequencies that old versions of transformers kept with the weights, and new ones compute.
_COMPUTED = re.compile(r"(\.masked_bias|\.causal_mask|\.rotary_emb\.\w+|\.(attn|attention)\.bias)$")


def require_names(auto: Any, settings: Any, shapes: Shapes, where: str, *, trust_remote_code: bool) -> None:
    """Raise ``UserError`` as ``require_tensors`` does, from names and shapes alone.

    Args:
        auto: the class of transformers that loads the model, such as ``AutoModelForCausalLM``.
        settings: the transformers config.
        shapes: of the folder's tensors.
        where: begins the message.
        trust_remote_code: run code that ships with the model.
    """
    if getattr(settings, "quantization_config", None) is not None:
        # The names are those of a quantiser, which needs the weights and its device.
        return
    with refused(f"{where}: transformers cannot load such a model"), _silent():
        with torch.device("meta"):
            model = auto.from_config(copy.deepcopy(settings), trust_remote_code=trust_remote_code)
        _, loading = type(model).from_pretrained(
            None,
            config=copy.deepcopy(settings),
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
        )
    require_tensors(where, loading)


def require_tensors(where: str, loading: dict[str, Any]) -> None:
    """Raise ``UserError`` if a folder's weights lack tensors of its model, hold others, or have other shapes.

    transformers fills the first with random numbers and leaves the second out when it saves; it only warns.
    """
    missing = sorted(map(str, loading["missing_keys"]))
    unexpected = sorted(name for name in map(str, loading["unexpected_keys"]) if _COMPUTED.search(name) is None)
    odd = sorted(loading.get("mismatched_keys") or [])
    shapes = [f"{name}: {tuple(has)} in the weights, {tuple(wants)} by config.json" for name, has, wants in odd]
    if shapes:
        raise UserError(
            f"{where}: the weights hold {_counted(shapes)} of another shape than the model of its config.json:\n"
            f"{first_lines(shapes)}"
        )
    if missing:
        raise UserError(
            f"{where}: the weights lack {_counted(missing)} of the model of its config.json:\n{first_lines(missing)}"
        )
    if unexpected:
        raise UserError(
            f"{where}: the weights hold {_counted(unexpected)} that the model of its config.json does not have, and "
            f"which would be lost:\n{first_lines(unexpected)}"
        )


def _counted(names: list[str]) -> str:
    return number_of(len(names), "tensor")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from drawing a progress bar, and from a report of what ``UserError`` says."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
