"""policy of round 0: the user's model or one made from scratch, after a warm start if configured."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome, policy_chat
from flows.stages.data import warm_start_texts
from flows.stages.training.train import OFFENDING_ROWS, fit, kept_where
from pipeline.config import PretrainedPolicy, ScratchPolicy
from pipeline.config.training import router_coefficient
from pipeline.errors import RowsError, UserError
from pipeline.losses import load_preset
from pipeline.models.chat import Chat
from pipeline.models.policy import load_policy, local_folder, save_policy, save_probe
from pipeline.models.scratch import make_policy
from pipeline.models.weights.adapter_folder import ADAPTER_WEIGHTS, copy_adapter, require_base
from pipeline.models.weights.weight_format import WeightFormat, frozen_format, require_unquantised
from pipeline.storage.digests import file_sha256
from pipeline.storage.integrity import BASE_FILES, BASE_MODEL, POINTED_FILES, POINTER, model_files
from pipeline.storage.rows import TEXTS, prompt_row, write_table
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.training.batches.examples import Example
from pipeline.training.trainee import Trainee
from pipeline.types import Prompt, derive_seed

BASE = "base"


def start_policy(context: Context, folder: Path) -> Outcome:
    """The policy that round 1 samples from."""
    config = context.config
    match config.policy:
        case PretrainedPolicy():
            origin = local_folder(config.policy.path, config.policy.revision)
        case ScratchPolicy():
            origin = _from_scratch(context, config.policy, folder)
    require_unquantised(origin)
    chat, held = policy_chat(config, origin), frozen_format(config, origin)
    if config.warm_start is None:
        return _as_it_is(context, origin, chat, folder, held)
    model = load_policy(str(origin), trust_remote_code=config.trusts_policy)
    dropped: Counter[str] = Counter()
    coefficient = router_coefficient(config.warm_start.router_aux_loss_coef)
    trainee = Trainee(model, end_ids=chat.end_ids, router_aux_loss_coef=coefficient)
    examples = _examples(context, chat, dropped)
    seed = derive_seed(config.seed, "warm start")
    try:
        outcome = fit(context, folder, trainee, examples, load_preset("sft"), config.warm_start, seed)
    except RowsError as error:
        if context.writes:
            _keep_offending_texts(context, folder, error)
        raise
    if not context.writes:
        return outcome
    full = config.training.lora is None
    save_policy(model, folder, tokenizer_source=str(origin), chat=chat, dtype=held.dtype, masters=full)
    facts: dict[str, JsonValue] = {
        "parameters": model.num_parameters(),
        "dropped_over_long_texts": dropped["over_long"],
        "dropped_refused_texts": dropped["refused"],
    }
    return Outcome(outcome.rows, {**outcome.metrics, **facts})


def _as_it_is(context: Context, origin: Path, chat: Chat, folder: Path, held: WeightFormat) -> Outcome:
    """Refer to the user's model; of an adapter, write a copy that names it."""
    policy, trusted = context.config.policy, context.config.trusts_policy
    files: dict[str, JsonValue] = model_files(origin)
    facts: dict[str, JsonValue] = {POINTER: str(origin), POINTED_FILES: files}
    path = origin
    if isinstance(policy, PretrainedPolicy) and policy.adapter is not None:
        require_base(policy.adapter, str(origin))
        copy_adapter(policy.adapter, folder, str(origin))
        sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
        facts = {BASE_MODEL: str(origin), BASE_FILES: files, "adapter": policy.adapter, "adapter_sha256": sha256}
        path = folder
    model = load_policy(str(path), trust_remote_code=trusted, held=held)
    save_probe(model, chat, folder)
    return Outcome(0, {**facts, "parameters": model.num_parameters(), "held_as": held.title})


def _from_scratch(context: Context, settings: ScratchPolicy, folder: Path) -> Path:
    """Make a tokenizer and random weights next to the checkpoints in ``folder``, completely or not at all."""
    base, scratch = folder / CHECKPOINTS / BASE, folder / CHECKPOINTS / f"{BASE}.tmp"
    if context.writes and not base.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
        texts = [part for prompt, text in warm_start_texts(context) for part in (*_contents(prompt), text)]
        make_policy(texts, settings, derive_seed(context.config.seed, "init"), scratch)
        scratch.rename(base)
    context.wait_for_everyone()
    return base


def _examples(context: Context, chat: Chat, dropped: Counter[str]) -> Iterator[Example]:
    """Warm-start texts as tokens; counts those left out, by cause. Raises ``UserError`` if none is left."""
    kept = 0
    for index, (prompt, text) in enumerate(warm_start_texts(context)):
        ids = chat.prompt_ids_if_written(prompt.messages)
        if ids is None:
            dropped["refused"] += 1
            continue
        if len(ids) > context.config.chat.max_prompt_tokens:
            dropped["over_long"] += 1
            continue
        kept += 1
        yield Example.text(f"{prompt.id}-{index}", ids, chat.response_ids(prompt.messages, text))
    if not kept:
        raise UserError(
            f"warm_start: no text is left: the prompts of {dropped['over_long']} are longer than "
            f"chat.max_prompt_tokens, and the chat template refuses those of {dropped['refused']}"
        )


def _keep_offending_texts(context: Context, folder: Path, error: RowsError) -> None:
    """Write the texts of the failed step next to the last good checkpoint."""
    suspects = set(error.example_ids)
    rows = (
        {"prompt": prompt_row(prompt), "text": text}
        for index, (prompt, text) in enumerate(warm_start_texts(context))
        if f"{prompt.id}-{index}" in suspects
    )
    write_table(folder / OFFENDING_ROWS, TEXTS, rows)
    error.args = (f"{error}\n  {kept_where(folder)}",)


def _contents(prompt: Prompt) -> list[str]:
    return [message.content for message in prompt.messages]
