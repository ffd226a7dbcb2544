"""Checks of how a policy's weights are to be held, trained and served. Loads no weights."""

from pathlib import Path

from pipeline.config import PretrainedPolicy, RunConfig, TransformersSampler
from pipeline.errors import UserError
from pipeline.models.weights.adapter_folder import require_base, require_shape_asked
from pipeline.models.weights.weight_format import require_quantiser, require_unquantised
from pipeline.sampling.served_adapters import why_lora_merged, why_merged


def check_policy_weights(config: RunConfig) -> None:
    """Raise ``UserError`` for an adapter of another base or shape, and for weights that cannot be quantised."""
    policy, lora = config.policy, config.training.lora
    if not isinstance(policy, PretrainedPolicy):
        return
    require_unquantised(policy.path)
    if policy.adapter is not None:
        if not Path(policy.adapter).is_dir():
            raise UserError(f"policy.adapter: {policy.adapter}: no such folder; an adapter's folder is allowed")
        require_base(policy.adapter, policy.path)
        if lora is not None:
            require_shape_asked(policy.adapter, lora)
    if policy.quantisation is not None:
        require_quantiser()
        if Path(policy.path).is_dir():
            from pipeline.models.weights.held_weights import require_linear_layers

            require_linear_layers(policy.path, trust_remote_code=policy.trust_remote_code)


def notes_on_serving(config: RunConfig) -> list[str]:
    """Return what to say before a run whose engine cannot be given the adapter that it trains."""
    lora, policy = config.training.lora, config.policy
    if lora is None or lora.lifetime == "round" or (config.mode == "offline" and config.prompts is None):
        return []
    if isinstance(config.sampler, TransformersSampler):
        return []
    adapter = policy.adapter if isinstance(policy, PretrainedPolicy) else None
    reason = why_lora_merged(lora) if adapter is None else why_merged(adapter)
    if reason is None:
        return []
    return [f"sampler: {reason}: for sampling, each round's adapter is merged into a temporary copy of the model"]
