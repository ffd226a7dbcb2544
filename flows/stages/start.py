"""policy of round 0: the user's model or one made from scratch, after the warm start if there is one."""

import shutil
from pathlib import Path

from flows.stages import Context, Outcome
from flows.stages.data import warm_start_texts
from flows.stages.samples import policy_chat
from flows.stages.train import fit
from pipeline.config import PretrainedPolicy, ScratchPolicy
from pipeline.losses import load_preset
from pipeline.policy import load_policy, save_policy, save_probe
from pipeline.scratch import make_policy
from pipeline.train import Example
from pipeline.types import Prompt, derive_seed


def start(context: Context, folder: Path) -> Outcome:
    """The policy that round 1 samples from."""
    config = context.config
    base = folder / "base"
    match config.policy:
        case PretrainedPolicy():
            origin = Path(config.policy.path)
        case ScratchPolicy():
            origin = base
            if not (base / "model.safetensors").exists():
                texts = [part for prompt, text in warm_start_texts(context) for part in (*_contents(prompt), text)]
                make_policy(texts, config.policy, derive_seed(config.seed, "init"), base)
    model = load_policy(str(origin), trust_remote_code=context.trusted)
    chat = policy_chat(config, origin)
    if config.warm_start is None:
        save_probe(model, chat, folder)
        return Outcome(0, {"checkpoint": str(origin), "parameters": model.num_parameters()})
    examples = [
        Example(
            id=f"{prompt.id}-{index}",
            prompt_ids=chat.prompt_ids(prompt.messages),
            chosen_ids=chat.response_ids(prompt.messages, text),
            rejected_ids=None,
            reference_chosen=None,
            reference_rejected=None,
        )
        for index, (prompt, text) in enumerate(warm_start_texts(context))
    ]
    seed = derive_seed(config.seed, "warm start")
    outcome = fit(context, folder, model, examples, load_preset("sft"), config.warm_start, seed)
    save_policy(model, folder, tokenizer_source=str(origin), chat=chat)
    shutil.rmtree(base, ignore_errors=True)
    return Outcome(outcome.rows, {**outcome.metrics, "parameters": model.num_parameters()})


def _contents(prompt: Prompt) -> list[str]:
    return [message.content for message in prompt.messages]
