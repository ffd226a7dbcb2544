"""Whether a policy's layers can be divided among processes, told from its config before weights are loaded. Torch-free.

torch is loaded only if the config asks for it.
"""

from pipeline.config import PretrainedPolicy, RunConfig
from pipeline.errors import UserError


def check_context_parallel(config: RunConfig) -> None:
    """Raise ``UserError`` that names the layer because of which ``training.context_parallel`` cannot be above 1."""
    asked, policy = config.training.context_parallel, config.policy
    if asked == 1 or not isinstance(policy, PretrainedPolicy):
        return
    import torch
    from transformers import AutoConfig

    from pipeline.models.architectures import auto_class
    from pipeline.models.attention.reasons import why_unlike_rows
    from pipeline.training.auxiliary.routers import Routers

    trusted = config.trusts_policy
    shape = AutoConfig.from_pretrained(policy.path, revision=policy.revision, trust_remote_code=trusted)
    with torch.device("meta"):
        model = auto_class(shape).from_config(shape, trust_remote_code=trusted)
    told = why_unlike_rows(model) or ("a mixture of experts" if Routers(model, None) else None)
    if told is not None:
        raise UserError(f"training.context_parallel: {asked}, but policy.path: {policy.path}: {told}; allowed: 1")
