"""What transformers makes of an ordinary model folder: its tokenizer's class, and that it is sound. Torch-free.

transformers loads torch and every model's settings to say so, which takes longer than to check a data set.
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

TokenizerName = Literal["TokenizersBackend", "Qwen2Tokenizer", "GPT2Tokenizer", "GemmaTokenizer"]
# Another version of transformers may choose otherwise: it is asked itself.
KNOWN_TRANSFORMERS = "5.19."
# The class, by the folder's model_type and its tokenizer_class without "Fast".
TOKENIZER_CLASSES: dict[tuple[str, str], TokenizerName] = {
    **{
        (model, named): "TokenizersBackend"
        for model in ("llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "gemma3_text", "olmo2", "smollm3")
        for named in ("TokenizersBackend", "PreTrainedTokenizer")
    },
    ("qwen2", "Qwen2Tokenizer"): "Qwen2Tokenizer",
    ("qwen3", "Qwen2Tokenizer"): "Qwen2Tokenizer",
    ("gpt2", "GPT2Tokenizer"): "GPT2Tokenizer",
    ("llama", "GPT2Tokenizer"): "GPT2Tokenizer",
    ("gemma2", "GemmaTokenizer"): "GemmaTokenizer",
    ("gemma3_text", "GemmaTokenizer"): "GemmaTokenizer",
}
# What RoPE of a type needs besides its base.
_ROPES: dict[str, set[str]] = {
    "default": set(),
    "llama3": {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"},
}
# Their names choose another class.
_BY_NAME = ("deepseek-ai/", "allenai/", "google/", "naver-clova-ix/", "salesforce/", "stepfun-ai/")


def tokenizer_class(path: str) -> TokenizerName | None:
    """Return the class of the folder's tokenizer, or None where ``AutoTokenizer`` has to be asked.

    It is asked about hub names, own code, files that cannot be read, and every setting of config.json that is not
    surely sound, since it refuses unsound ones.
    """
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file() or path.lower().startswith(_BY_NAME):
        return None
    model, tokenizer = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    if not isinstance(tokenizer, dict) or "auto_map" in tokenizer or not _is_sound(model):
        return None
    named = tokenizer.get("tokenizer_class")
    if not isinstance(named, str):
        return None
    return TOKENIZER_CLASSES.get((model["model_type"], named.removesuffix("Fast")))


def is_ordinary_model(folder: Path) -> bool:
    """Return whether the folder's config.json is surely that of an exact language model, at any length of its rows."""
    model = _read(folder / "config.json")
    return _is_sound(model) and model["model_type"] in {kind for kind, _ in TOKENIZER_CLASSES}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_share(value: Any) -> bool:
    return type(value) is float and 0 <= value <= 1


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_rope(value: Any) -> bool:
    """Return whether RoPE is the plain one, or that of Llama 3 with all that it needs."""
    if value is None:
        return True
    kind = value.get("rope_type") if isinstance(value, dict) else None
    names = _ROPES.get(kind) if isinstance(kind, str) else None
    return (
        names is not None
        and names <= {*value} <= {*names, "rope_type", "rope_theta"}
        and all(type(number) in (int, float) and number > 0 for name, number in value.items() if name != "rope_type")
    )


def _is_activation(value: Any) -> bool:
    return value in ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


def _is_dtype(value: Any) -> bool:
    return value in ("float32", "float16", "bfloat16")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_SOUND: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings", "max_window_layers",
            "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pretraining_tp", "vocab_size",
        ),
        _is_count,
    ),
    **dict.fromkeys(("attention_dropout", "initializer_range", "rms_norm_eps"), _is_share),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "use_sliding_window"), _is_flag
    ),
    **dict.fromkeys(("model_type", "transformers_version", "_name_or_path"), _is_text),
    **dict.fromkeys(("dtype", "torch_dtype"), _is_dtype),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _is_rope),
    "hidden_act": _is_activation,
    "rope_theta": lambda value: type(value) in (int, float) and value > 0,
    "architectures": _are_texts,
    "sliding_window": lambda value: value is None or _is_count(value),
}  # fmt: skip
_REQUIRED = {"model_type", "hidden_size", "num_attention_heads", "vocab_size"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _is_sound(model: Any) -> bool:
    """Return whether all settings of a model's config.json are known ones with usual values."""
    known = importlib.metadata.version("transformers").startswith(KNOWN_TRANSFORMERS)
    if not known or not isinstance(model, dict) or not {*model} >= _REQUIRED:
        return False
    given = dict(model)
    kinds = given.pop("layer_types", None)
    ids = [given.pop(name, None) for name in _TOKEN_IDS]
    if not all(name in _SOUND and _SOUND[name](value) for name, value in given.items()):
        return False
    if given["hidden_size"] % given["num_attention_heads"]:
        return False
    # RoPE turns pairs of numbers.
    if given.get("head_dim", given["hidden_size"] // given["num_attention_heads"]) % 2:
        return False
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != given.get("num_hidden_layers")
        or not all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    ):
        return False
    numbers = [number for held in ids for number in (held if isinstance(held, list) else [held])]
    return all(number is None or (type(number) is int and 0 <= number < given["vocab_size"]) for number in numbers)
