"""Whether a model folder holds a language model that can be trained, before its weights are loaded.

transformers is asked: what it knows by the name, what its config reads, and which tensors it finds.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
)
from transformers import __version__ as hf_version

from pipeline.errors import UserError, nearest
from pipeline.models.architectures import auto_class
from pipeline.models.foreign import model_settings, refused
from pipeline.models.loading.rope import require_steady_rope
from pipeline.models.loading.tensor_names import require_names
from pipeline.models.loading.weight_files import tensor_shapes

_ALLOWED = "allowed are decoder-only models of AutoModelForCausalLM and AutoModelForImageTextToText"
# Their configs have is_decoder, which nothing reads.
_ALWAYS_DECODERS = frozenset({"gpt_neox", "gpt_neox_japanese"})
# Permuted or denoised text.
_IN_ANY_ORDER = frozenset({"xlnet", "diffusion_gemma"})


def require_language_model(path: str, field: str, longest: int, *, trust_remote_code: bool) -> None:
    """Raise ``UserError`` if no exact language model can be loaded from a model folder; reads no weights.

    ``longest``: tokens of the longest prompt and response that the model will read.
    """
    folder, where = Path(path), f"{field}: {path}"
    shapes = tensor_shapes(folder, f"{field}: ")
    settings = _model_config(folder, field, trust_remote_code=trust_remote_code)
    _require_loadable(settings, where, trust_remote_code=trust_remote_code)
    text = settings.get_text_config().to_dict()
    require_steady_rope(where, text, longest, "chat.max_prompt_tokens + chat.max_response_tokens and sampler.context")
    require_names(auto_class(settings), settings, shapes, where, trust_remote_code=trust_remote_code)


def _model_config(folder: Path, field: str, *, trust_remote_code: bool) -> Any:
    plain = model_settings(folder / "config.json")
    kind = str(plain.get("model_type"))
    if "model_type" not in plain:
        raise UserError(f"{field}: {folder}: its config.json has no model_type; {_ALLOWED}")
    named = f"{field}: {folder}: its config.json has model_type {kind[:60]!r}"
    if kind not in CONFIG_MAPPING:
        own = isinstance(plain.get("auto_map"), dict) and "AutoConfig" in plain["auto_map"]
        if not own:
            close = nearest(kind, CONFIG_MAPPING)
            raise UserError(f"{named}, which transformers {hf_version} does not know{close}; {_ALLOWED}")
        if not trust_remote_code:
            raise UserError(
                f"{named}, which only code in that folder can read; allowed are types that transformers {hf_version} "
                "knows, or policy.trust_remote_code=true, which runs that code"
            )
    with refused(f"{field}: {folder}: transformers cannot read its config.json"):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def _require_loadable(settings: Any, where: str, *, trust_remote_code: bool) -> None:
    """Raise ``UserError`` if models with this config do not predict each token from those before it."""
    own = trust_remote_code and "AutoModelForCausalLM" in (vars(settings).get("auto_map") or {})
    known = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    kind = f"{where}: its config.json has model_type {settings.model_type!r}"
    if not own and not any(type(settings) in models for models in known):
        raise UserError(f"{kind}, which transformers cannot load as a language model; {_ALLOWED}")
    reason = None if own else why_not_causal(settings)
    if reason is not None:
        raise UserError(f"{kind}, {reason}; {_ALLOWED}")


def why_not_causal(settings: Any) -> str | None:
    """Why models with this config do not predict each token from those before it, judging by the config; else None."""
    plain = settings.to_dict()
    if plain.get("is_encoder_decoder"):
        return "which answers with a decoder of its own (is_encoder_decoder: true)"
    heeds = "is_decoder" in type(settings)().to_dict()
    if heeds and plain.get("is_decoder") is False and settings.model_type not in _ALWAYS_DECODERS:
        return "which reads text in both directions (is_decoder: false)"
    if settings.model_type in _IN_ANY_ORDER or plain.get("causal") is False:
        return "which does not read text from left to right"
    return None


@torch.no_grad()
def require_causal(model: Any, where: str) -> None:
    """Raise ``UserError`` if a later token changes what a loaded ``model`` says of earlier ones.

    Logits that are no numbers tell nothing of it: the probe names them.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(3, 11, device=model.device).unsqueeze(0) % rows
    other = ids.clone()
    other[0, 4:] = (other[0, 4:] + 7) % rows
    found, changed = (model(input_ids=given, use_cache=False).logits[0, :4].float() for given in (ids, other))
    if float((found - changed).abs().max()) > 0.1 * float(found.std()):
        raise UserError(
            f"{where}: {type(model).__name__} is not a causal language model: what it says of a token depends on later "
            f"tokens; {_ALLOWED}"
        )
