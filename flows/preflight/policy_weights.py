"""Checks of how a policy's weights are to be held, trained and served. Loads no weights."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.config import PretrainedPolicy, RunConfig, ServerSampler, TransformersSampler
from pipeline.errors import UserError
from pipeline.models.loading.weight_files import tensor_shapes
from pipeline.models.weights.adapter_folder import adapter_settings, require_base, require_shape_asked
from pipeline.models.weights.weight_format import require_quantiser, require_unquantised
from pipeline.sampling.served_adapters import why_lora_merged, why_merged

# The names of the largest models take a plain expression less than one.
SECONDS = 10.0
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, (_, pattern) in enumerate(patterns):
    print(number, flush=True)
    for shape in (rf"(.*\\.)?({pattern})$", pattern):
        try:
            one = re.compile(shape)
        except (re.error, RecursionError, OverflowError):
            continue  # peft says what is wrong with it.
        for name in names:
            one.match(name), one.fullmatch(name)
"""


def check_policy_weights(config: RunConfig, fetched: Path | None = None) -> None:
    """Raise ``UserError`` for weights that cannot be held, trained or served as asked, and for an adapter of another
    base or shape.

    ``fetched``: the folder of a policy that is named by its hub name, once it is here.
    """
    if isinstance(config.policy, PretrainedPolicy):
        _check_pretrained(config, config.policy, fetched)
    require_servable(config)


def _check_pretrained(config: RunConfig, policy: PretrainedPolicy, fetched: Path | None) -> None:
    path = policy.path if fetched is None else str(fetched)
    require_unquantised(path)
    if policy.adapter is not None:
        _check_adapter(config, policy.adapter, path)
    if policy.quantisation is not None:
        require_quantiser()
        if Path(path).is_dir():
            from pipeline.models.weights.held_weights import require_linear_layers

            require_linear_layers(path, trust_remote_code=config.trusts_policy)


def _check_adapter(config: RunConfig, adapter: str, path: str) -> None:
    if not Path(adapter).is_dir():
        raise UserError(f"policy.adapter: {adapter}: no such folder; an adapter's folder is allowed")
    require_base(adapter, path)
    if config.training.lora is not None:
        require_shape_asked(adapter, config.training.lora)
    if Path(path).is_dir():
        require_quick_patterns(adapter, path)
        from pipeline.models.weights.lora import require_fitting

        require_fitting(adapter, path, trust_remote_code=config.trusts_policy)


def require_servable(config: RunConfig) -> None:
    """Raise ``UserError`` for a user's own server that cannot be given the adapters that the run will train."""
    reason, sampler = merged_for_sampling(config), config.sampler
    if reason is not None and isinstance(sampler, ServerSampler) and sampler.base_url is not None:
        raise UserError(
            f"sampler.base_url: {sampler.base_url}: {reason}, and a server that is running cannot be given a whole "
            "model; allowed are LoRA or rsLoRA of linear layers but the output head, or base_url=null, or "
            "sampler.kind=vllm or transformers"
        )


def notes_on_serving(config: RunConfig) -> list[str]:
    """Return what to say before a run whose engine cannot be given the adapter that it trains."""
    reason = merged_for_sampling(config)
    if reason is None:
        return []
    return [f"sampler: {reason}: for sampling, each round's adapter is merged into a temporary copy of the model"]


def merged_for_sampling(config: RunConfig) -> str | None:
    """Return why the run's engine cannot be given the adapter that it trains; None if it can, or if there is none."""
    lora, policy = config.training.lora, config.policy
    if lora is None or lora.lifetime == "round" or (config.mode == "offline" and config.prompts is None):
        return None
    if isinstance(config.sampler, TransformersSampler):
        return None
    adapter = policy.adapter if isinstance(policy, PretrainedPolicy) else None
    return why_lora_merged(lora) if adapter is None else why_merged(adapter)


def require_quick_patterns(adapter: str, base: str, field: str = "policy.adapter", seconds: float = SECONDS) -> None:
    """Raise ``UserError`` if matching the adapter's expressions with the names of ``base`` takes over ``seconds``.

    peft matches all of them, where nothing can end it: ``(a+)+`` may take years. A process of its own can be ended.
    """
    patterns = [*_expressions(adapter_settings(adapter, field))]
    if not any(set(pattern) & set("*+?{|") for _, pattern in patterns):
        return
    asked = json.dumps([patterns, sorted(_names(Path(base)))])
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=asked, text=True, capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        reached = (late.stdout or b"").decode().split()
        place, slow = patterns[int(reached[-1]) if reached else 0]
        raise UserError(
            f"{field}: {adapter}/adapter_config.json: {place}: {slow[:60]!r}: takes over {seconds:g} s to match with "
            "the model's names; allowed are expressions without repeats in repeats, or a list of names"
        ) from None


def _expressions(settings: dict[str, object]) -> list[tuple[str, str]]:
    """The settings that peft matches as expressions, each with its place."""
    found: list[tuple[str, str]] = []
    for place in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern"):
        found += [(place, one) for one in _texts(settings.get(place))]
    return found + [("alpha_pattern", one) for one in _texts(settings.get("alpha_pattern"))]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, (list, dict)) else []


def _names(base: Path) -> set[str]:
    """Names of the model's modules: those of its weights, and what they lie in."""
    found = set()
    for name in tensor_shapes(base, "policy.path: "):
        parts = name.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts))}
    return found
