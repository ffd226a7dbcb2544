"""second_samples: another model's responses to the round's prompts, in the policy's tokens.

Where its tokenizer or chat template is another one, its responses are encoded anew from their texts.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flows.run_folder.ancestry import SECOND_POLICY
from flows.stages.context import Context, Outcome, policy_chat
from flows.stages.sampling.samples import round_prompts
from flows.stages.sampling.shards import SampledFrom, sample_stage
from flows.stages.training.given import second_chat
from flows.workers.local import Workers
from pipeline.errors import UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.storage.rows import read_group_file, write_groups
from pipeline.storage.seals import Seals
from pipeline.types import FinishReason, Group, Message, Response

OWN_TOKENS = "own_tokens"


def second_samples(context: Context, round_: int, folder: Path, workers: Workers) -> Outcome:
    """Responses of the second policy to the round's prompts, in the order of the policy's own.

    Raises:
        UserError: its responses cannot be written in the policy's tokens.
    """
    config, second = context.config, context.config.pairing.second
    assert second is not None, "made only for a second policy"
    source = SampledFrom(context.run.stage(0, SECOND_POLICY), chat=second_chat(config.chat))
    ours = policy_chat(config, context.policy_path(0))
    theirs = load_chat(str(context.model_path(source.stage)), second_chat(config.chat))
    _require_writable(second.path, ours, theirs)
    settings = config.sampling.model_copy(update={"n": second.n, "mixture": None})
    drawn = folder / OWN_TOKENS
    drawn.mkdir(exist_ok=True)
    prompts = round_prompts(context, round_)
    made = sample_stage(context, round_, drawn, workers, prompts, settings, "second", source)
    seals, counted, rows = Seals(folder), Counter({"as_sampled": 0, "encoded_anew": 0, "refused_prompts": 0}), 0
    for file in sorted(drawn.glob("shard_*.parquet")):
        groups = [*_written(read_group_file(file), ours, theirs, counted)]
        rows += write_groups(folder / file.name, groups, seals.of(file.name))
    shutil.rmtree(drawn)
    return Outcome(rows, {**made.metrics, **counted})


def _require_writable(path: str, ours: Chat, theirs: Chat) -> None:
    """Raise ``UserError`` if texts do not hold what the responses say."""
    if ours.template_hash != theirs.template_hash and (ours.thoughts.expected or theirs.thoughts.expected):
        raise UserError(
            f"pairing.second.path: {path}: its tokenizer or chat template differs from the policy's, and one of them "
            "has thoughts, which cannot be written in the other's tokens; allowed: a model with the policy's tokenizer "
            "and template, or two models without thoughts"
        )


def _written(groups: Iterator[Group], ours: Chat, theirs: Chat, counted: Counter[str]) -> Iterator[Group]:
    """Yield the groups in the policy's tokens, without log-probabilities, which would be another model's."""
    same = ours.template_hash == theirs.template_hash
    for group in groups:
        messages = group.prompt.messages
        ids = ours.prompt_ids_if_written(messages)
        if ids is None:
            counted["refused_prompts"] += 1
        elif same and ids == group.prompt_ids:
            counted["as_sampled"] += len(group.responses)
            yield replace(group, responses=tuple(replace(r, logprobs=()) for r in group.responses))
        else:
            counted["encoded_anew"] += len(group.responses)
            yield Group(group.prompt, ids, tuple(_anew(r, ids, messages, ours) for r in group.responses))


def _anew(response: Response, prompt_ids: tuple[int, ...], messages: tuple[Message, ...], chat: Chat) -> Response:
    finished = response.finish_reason == "stop"
    ids = chat.response_ids(messages, response.text, finished)
    end: FinishReason = "stop" if ids and ids[-1] in chat.end_ids else "length"
    return chat.thoughts.response(prompt_ids, ids, (), end, Message("assistant", response.text))
