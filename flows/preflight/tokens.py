"""The policy's and the reward model's tokenizers, which measure the rows of a run's data."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from pipeline.config import (
    ClassifierScorer,
    DiffusionPolicy,
    PretrainedPolicy,
    RunConfig,
    ScratchDiffusion,
    ScratchPolicy,
    scorers_of,
)
from pipeline.config.data.limits import OF_TOKENS
from pipeline.data.faults import Tokens
from pipeline.errors import UserError
from pipeline.sampling.sampler import engine_context
from pipeline.types import Message

if TYPE_CHECKING:
    from pipeline.models.chat import Chat
    from pipeline.models.rendering.template import Rendering

_UNLIMITED = 2**62


def tokens_for_dropping(config: RunConfig) -> Tokens | None:
    """Return the tokenizers if ``limits`` drops rows that only they can find, else None. Raises ``UserError``."""
    causes = [cause for cause in config.limits.dropped if cause in OF_TOKENS]
    if not causes:
        return None
    if isinstance(config.policy, ScratchPolicy):
        raise UserError(
            f"limits.{causes[0]}: drop needs the policy's tokenizer, which a policy of kind scratch makes from the "
            "rows that are left; use a share"
        )
    return tokens_of(config, ())


def tokens_of(config: RunConfig, texts: Iterable[str]) -> Tokens:
    """Return the policy's chat, even if the run has yet to make the policy from ``texts``, and the reward model's."""
    from pipeline.models.chat import Chat, load_chat
    from pipeline.models.foreign import embedding_rows

    policy, context, rows = config.policy, None, None
    match policy:
        case PretrainedPolicy():
            chat = load_chat(policy.path, config.chat, policy.trust_remote_code)
            limit = engine_context(_UNLIMITED, policy.path)
            context = None if limit == _UNLIMITED else limit
            rows = embedding_rows(Path(policy.path))
        case ScratchPolicy():
            from pipeline.models.scratch import make_tokenizer

            chat, context = Chat(make_tokenizer(texts, policy.vocab_size), config.chat), policy.context
        case DiffusionPolicy() | ScratchDiffusion():
            raise UserError(f"policy.kind: {policy.kind} makes images, and has no tokenizer; allowed: a policy of text")
        case _:
            assert_never(policy)
    shortest = shortest_reader(config)
    if shortest is None:
        return Tokens(chat, config.chat, context, rows)
    length = _reward_length(shortest, _shared(config, chat))
    return Tokens(chat, config.chat, context, rows, length, shortest.max_tokens)


def shortest_reader(config: RunConfig) -> ClassifierScorer | None:
    """Return the reward model that runs here and reads the fewest tokens."""
    scorers = [] if config.scorer is None else [scorer for _, scorer in scorers_of(config.scorer)]
    models = [scorer for scorer in scorers if isinstance(scorer, ClassifierScorer)]
    return min(models, key=lambda model: model.max_tokens, default=None)


def _shared(config: RunConfig, chat: "Chat") -> "Rendering | None":
    from pipeline.models.rendering.template import Rendering

    given = config.chat
    return Rendering(given.template_kwargs, given.template_file, chat.own_template) if given.rerendered else None


def _reward_length(
    settings: ClassifierScorer, rendering: "Rendering | None"
) -> Callable[[Sequence[Message], Message], int]:
    from pipeline.models.foreign import embedding_rows, load_tokenizer
    from reward_models.local.conversations import Conversations

    tokenizer = load_tokenizer(settings.path, "scorer.path: ", trust_remote_code=settings.trust_remote_code)
    conversations = Conversations(tokenizer, embeddings=embedding_rows(Path(settings.path)), rendering=rendering)

    def length(messages: Sequence[Message], answer: Message) -> int:
        try:
            (ids,) = conversations.encode([(messages, answer)])
        except UserError as error:
            # No fault of the row: only what the policy's template refuses is dropped, this would end the run later.
            raise UserError(f"scorer.path: {error}") from None
        return len(ids)

    return length
