"""Checks of how a policy's weights are to be held, trained and served. Loads no weights."""

from pathlib import Path

from pipeline.config import PretrainedPolicy, RunConfig, ServerSampler, TransformersSampler
from pipeline.errors import UserError
from pipeline.models.weights.adapter_folder import require_base, require_shape_asked
from pipeline.models.weights.weight_format import require_quantiser, require_unquantised
from pipeline.sampling.served_adapters import why_lora_merged, why_merged


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
