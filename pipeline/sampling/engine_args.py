"""``sampler.engine_args``: further arguments of vLLM's engine, checked against the installed vLLM. Torch-free.

vLLM itself is not imported, which takes seconds and reserves memory: its source says which arguments there are.
"""

import ast
import difflib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from pipeline.errors import UserError

# Arguments that prefloop sets itself, and what to set instead.
OWNED: Mapping[str, str] = {
    "model": "policy.path",
    "tokenizer": "policy.path",
    "tokenizer_mode": "policy.path",
    "skip_tokenizer_init": "policy.path",
    "revision": "policy.revision",
    "tokenizer_revision": "policy.revision",
    "code_revision": "policy.revision",
    "hf_config_path": "policy.path",
    "model_weights": "policy.path",
    "load_format": "policy.path",
    "config_format": "policy.path",
    "served_model_name": "sampler.model",
    "trust_remote_code": "policy.trust_remote_code",
    "hf_token": "the variable HF_TOKEN",
    "dtype": "sampler.dtype",
    "max_model_len": "sampler.context",
    "enforce_eager": "sampler.enforce_eager",
    "gpu_memory_utilization": "sampler.gpu_memory_utilization",
    "max_num_seqs": "sampler.max_num_seqs",
    "tensor_parallel_size": "sampler.tensor_parallel_size",
    "pipeline_parallel_size": "sampler.pipeline_parallel_size",
    "data_parallel_size": "sampler.engines",
    "enable_lora": "training.lora",
    "max_loras": "training.lora",
    "max_lora_rank": "training.lora",
    "seed": "nothing: each sample has its own",
    "logprobs_mode": "nothing: log-probs must be the policy's own",
    "generation_config": "sampling",
    "override_generation_config": "sampling",
    "enable_prefix_caching": "nothing: it is on",
    "enable_chunked_prefill": "nothing: on CUDA it is on, on CPU it must be off",
    "runner": "nothing: policies generate",
    "convert": "nothing: policies generate",
    "logits_processors": "sampling",
    "allowed_local_media_path": "nothing: prompts are token ids",
}
_KINDS: Mapping[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


@cache
def installed_args(source: Path | None = None) -> Mapping[str, str]:
    """Return vLLM's engine arguments and their types as its source writes them; nothing without vLLM.

    ``source``: of the class ``EngineArgs``; default: the installed one.
    """
    file = source or _source()
    if file is None:
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_class = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "EngineArgs"), None)
    return {
        one.target.id: ast.unparse(one.annotation)
        for one in (of_class.body if of_class else ())
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }


def _source() -> Path | None:
    spec = importlib.util.find_spec("vllm")
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((f for place in places if (f := Path(place) / "engine" / "arg_utils.py").is_file()), None)


def require_engine_args(args: Mapping[str, JsonValue], known: Mapping[str, str] | None = None) -> None:
    """Raise ``UserError`` for arguments that are unknown to vLLM, that prefloop sets, or of the wrong type.

    ``known``: see ``installed_args``, the default; if there are none, vLLM itself decides.
    """
    known = installed_args() if known is None else known
    for name, value in args.items():
        field = f"sampler.engine_args.{name}"
        if name in OWNED:
            raise UserError(f"{field}: {_shown(value)}: prefloop sets this argument itself; set {OWNED[name]}")
        if known and name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), [n for n in known if n not in OWNED], 3, 0.6)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise UserError(f"{field}: {_shown(value)}: the installed vLLM has no such engine argument{hint}")
        allowed = _simple(known.get(name, ""))
        if allowed and not _is_one_of(value, allowed):
            raise UserError(f"{field}: {_shown(value)}: must be {' or '.join(allowed)}")


def _simple(annotation: str) -> list[str]:
    """The types of an annotation that has only simple ones; empty if it has others, which vLLM checks."""
    parts = [part.strip() for part in annotation.split("|")]
    return parts if annotation and all(part in {*_KINDS, "None"} for part in parts) else []


def _is_one_of(value: JsonValue, allowed: list[str]) -> bool:
    if value is None:
        return "None" in allowed
    kinds = [kind for name in allowed for kind in _KINDS.get(name, ())]
    # True is no number.
    return type(value) in kinds


def formats_of(folder: str | Path) -> dict[str, str]:
    """Return arguments for a folder that holds the model in Mistral's own format too.

    Without them vLLM reads that one: other files than the trainer's, with another config and tokenizer.
    """
    twice = (Path(folder) / "params.json").is_file() or any(Path(folder).glob("consolidated*.safetensors"))
    return dict.fromkeys(("config_format", "load_format", "tokenizer_mode"), "hf") if twice else {}


def _shown(value: JsonValue) -> str:
    return json.dumps(value)[:80]


def as_flags(args: Mapping[str, JsonValue]) -> list[str]:
    """Return the arguments as options of ``vllm serve``; None is vLLM's own default.

    >>> as_flags({"block_size": 32, "enable_dbo": False, "cudagraph_capture_sizes": [1, 2], "kv": {"a": 1}})
    ['--block-size', '32', '--no-enable-dbo', '--cudagraph-capture-sizes', '1', '2', '--kv', '{"a": 1}']
    """
    flags: list[str] = []
    for name, value in args.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                continue
            case bool():
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            case list() if not any(isinstance(one, list | dict) for one in value):
                flags += [f"--{flag}", *map(str, value)]
            case list() | dict():
                flags += [f"--{flag}", json.dumps(value)]
            case _:
                flags += [f"--{flag}", str(value)]
    return flags


def is_quantised(args: Mapping[str, JsonValue]) -> bool:
    """Whether an engine with these arguments holds weights or keys and values in fewer than 16 bits."""
    cache_dtype = args.get("kv_cache_dtype") or "auto"
    return bool(args.get("quantization")) or cache_dtype not in ("auto", "bfloat16", "float16", "float32")
