"""Faults in a row of the user's data, by cause; the causes are the fields of ``config.Limits``. Torch-free.

Uses a chat only through its methods. The caller counts faults and refuses rows.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

from pipeline import config
from pipeline.data.forms.answers import conversations, trained_turns
from pipeline.data.forms.spelled import is_spelled
from pipeline.data.reading import PromptRow
from pipeline.data.split import Split
from pipeline.data.spool.distinct import Firsts
from pipeline.errors import RefusedTurnsError, UserError
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText, content_hash

Cause = Literal[
    "malformed",
    "refused",
    "unwritten",
    "unread",
    "spelled",
    "doubled_bos",
    "doubled_eos",
    "special_token",
    "missing_eos",
    "not_a_prefix",
    "empty",
    "identical",
    "identical_when_cut",
    "contradiction",
    "lone_response",
    "tie",
    "duplicate_prompt",
    "duplicate_row",
    "differing_answer",
    "leak",
    "long_for_policy", "long_for_reward_model",
    "unlabelled", "unreadable_image", "missing_image", "image_url", "huge_image", "image_size",
]  # fmt: skip
Fault = tuple[Cause, str]
# How what is said of a prompt that is dropped begins.
LONG_PROMPT = "a prompt"
# A response with its name.
_Side = tuple[str, Message]


class _LeftOut(Protocol):
    """The attributes of ``unread.LeftOut`` used here."""

    @property
    def content(self) -> tuple[str, ...]:
        """What is said or given."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Further fields of turns."""
        ...


class _Chat(Protocol):
    """The methods of ``chat.Chat`` used here."""

    end_ids: frozenset[int]
    bos_id: int | None

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids up to the start of the assistant's turn."""
        ...

    def response_ids(
        self, messages: Sequence[Message], text: str, finished: bool = True, extra: str = ""
    ) -> tuple[int, ...]:
        """Return the ids of the assistant's turn, with the end token last unless it is cut."""
        ...

    def continues(self, messages: Sequence[Message], text: str, extra: str = "") -> bool:
        """Return whether the prompt's ids are a prefix of prompt and response rendered together."""
        ...

    def left_out(self, messages: Sequence[Message], answers: Sequence[Message]) -> _LeftOut:
        """Return the names of the parts of the conversation that the template leaves out."""
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens as their names."""
        ...

    def token(self, number: int) -> str:
        """Return the text of a token."""
        ...

    def spelled(self, text: str, role: str = "assistant") -> list[tuple[str, int | None]]:
        """Return the control tokens, with their ids, and the template's headers that a turn's text spells."""
        ...


@dataclass(frozen=True)
class Tokens:
    """The policy's and the reward model's tokenizers and length limits, for measuring rows.

    Attributes:
        chat: the policy's.
        limits: how long prompts and responses may be.
        context: tokens that the policy can read; None: no limit.
        rows: tokens that the policy has embeddings for; None: unknown.
        reward_length: counts a conversation's tokens for the reward model; it reads at most ``reward_limit`` of them.
    """

    chat: _Chat
    limits: config.ChatSettings
    context: int | None = None
    rows: int | None = None
    reward_length: Callable[[Sequence[Message], Message], int] | None = None
    reward_limit: int = 0


class FaultFinder:
    """Finds faults in the rows of one source, passed in order.

    ``leaks``: prompts that must not appear. Without ``tokens``, causes that need a tokenizer are skipped. Rows that are
    ``dropped`` by cause are not what later rows repeat.
    """

    def __init__(
        self, tokens: Tokens | None = None, leaks: Split | None = None, dropped: Collection[str] = frozenset()
    ) -> None:
        self._tokens = tokens
        self._leaks = leaks
        self._dropped = dropped
        self._prompts = Firsts()
        self._rows = Firsts()

    def faults(self, place: str, row: PromptRow | TextPreference) -> Iterator[Fault]:
        """Yield each cause of the row once.

        Raises:
            UserError: a model that cannot read the row's tokens, or whose template refuses what the policy's takes.
        """
        sides = named_answers(row)
        before, after = [*_faults_of_texts(row, sides)], [*self._leaks_and_tokens(place, row, sides)]
        yield from before
        if not any(cause in self._dropped for cause, _ in (*before, *after)):
            yield from self._repeats(place, row, sides)
        yield from after

    def _leaks_and_tokens(self, place: str, row: PromptRow | TextPreference, sides: Sequence[_Side]) -> Iterator[Fault]:
        if self._leaks is not None and self._leaks.copies(row.prompt):
            yield "leak", f"held out, ignoring case, spaces and Unicode form: {row.prompt.messages[-1].content[:80]!r}"
        if self._tokens is not None:
            try:
                found: dict[Cause, str] = {}
                several = trained_turns(row) if isinstance(row, TextPair) and row.several_turns else ()
                asked = [(prompt, [(name, turn)]) for prompt, name, turn in several] or [(row.prompt, [*sides])]
                for cause, said in chain.from_iterable(_faults_of_tokens(*each, self._tokens) for each in asked):
                    found.setdefault(cause, said)
                yield from found.items()
            except RefusedTurnsError as error:
                yield "refused", str(error)
            except UserError as error:
                # Not the row but the models: dropping it would help no other.
                raise UserError(f"{place}: {error}") from error

    def _repeats(self, place: str, row: PromptRow | TextPreference, sides: Sequence[_Side]) -> Iterator[Fault]:
        prompt = row.prompt
        first = self._prompts.add(prompt.id, place, prompt.answer)
        if first is not None:
            yield "duplicate_prompt", f"as in {first[0]}"
            if prompt.answer != first[1]:
                yield "differing_answer", f"answer {prompt.answer!r}, but {first[0]} has {first[1]!r}"
        if sides:
            same = self._rows.add(content_hash([prompt.id, *sorted(turn.shown for _, turn in sides)]), place)
            if same is not None:
                yield "duplicate_row", f"as in {same[0]}"


def named_answers(row: PromptRow | TextPreference) -> list[_Side]:
    """Return the row's responses, each with its name."""
    match row:
        case TextPair() if row.several_turns:
            wholes = (Message("assistant", "\n".join(turn.shown for turn in turns)) for turns in conversations(row))
            return [*zip(("chosen", "rejected"), wholes, strict=True)]
        case TextPair():
            return [*zip(("chosen", "rejected"), row.answers, strict=True)]
        case UnpairedText():
            return [("completion", Message("assistant", row.completion, row.extra))]
        case TextGroup():
            return [(f"response {place}", turn) for place, turn in enumerate(row.answers, 1)]
        case PromptRow():
            return [("response", Message("assistant", text)) for text in row.texts]


def _faults_of_texts(row: PromptRow | TextPreference, sides: Sequence[_Side]) -> Iterator[Fault]:
    spelled = [name for name, turn in _turns(row.prompt, sides) if is_spelled(turn.content)]
    if spelled:
        yield (
            "spelled",
            f"a conversation written out as text: {', '.join(dict.fromkeys(spelled))}; parse: true reads it",
        )
    empty = [name for name, turn in sides if not turn.shown.strip()]
    if empty:
        yield "empty", f"no text: {', '.join(empty)}"
    # Reference responses are not compared with each other.
    if not isinstance(row, PromptRow) and (
        equal := _equal([(n, turn.shown) for n, turn in sides if turn.shown.strip()])
    ):
        yield "identical", f"{equal[0]} and {equal[1]} are equal"
    match row:
        case TextPair() if row.soft_label == 0.5:
            yield "tie", "equal votes for both"
        case TextPair() if row.chosen_score is not None and row.chosen_score == row.rejected_score:
            yield "tie", f"both have the score {row.chosen_score:g}"
        case TextPair() if row.chosen_score is not None and row.rejected_score is not None:
            if row.chosen_score < row.rejected_score:
                said = f"chosen has {row.chosen_score:g}, rejected {row.rejected_score:g}"
                yield "contradiction", f"{said}; rewards_are: ranks if 1 is the best"
        case TextGroup() if len(known := {reward for reward in row.rewards if reward is not None}) == 1:
            yield "tie", f"all have the reward {known.pop():g}"


def _turns(prompt: Prompt, sides: Sequence[_Side]) -> list[_Side]:
    """Return every turn that people or models wrote, each with its name."""
    return [*(("prompt", turn) for turn in prompt.messages if turn.is_turn), *sides]


def _equal(sides: Sequence[tuple[str, str | tuple[int, ...]]]) -> tuple[str, str] | None:
    """Return the names of two sides with equal content."""
    seen: dict[str | tuple[int, ...], str] = {}
    for name, held in sides:
        if held in seen:
            return seen[held], name
        seen[held] = name
    return None


def _faults_of_tokens(prompt: Prompt, sides: Sequence[_Side], tokens: Tokens) -> Iterator[Fault]:
    chat, limits, messages = tokens.chat, tokens.limits, prompt.messages
    yield from _spelled(prompt, sides, chat)
    prompt_ids = chat.prompt_ids(messages)
    left_out = chat.left_out(messages, [turn for _, turn in sides])
    if left_out.content:
        yield "unwritten", f"the chat template does not write: {', '.join(left_out.content)}"
    if left_out.fields:
        yield "unread", f"the chat template does not read: {', '.join(left_out.fields)}"
    said, merged = [], []
    for name, turn in sides:
        if turn.shown.strip():
            said.append((name, turn, chat.response_ids(messages, turn.content, extra=turn.extra)))
            if not chat.continues(messages, turn.content, turn.extra):
                merged.append(name)
    _require_embeddings([prompt_ids, *(ids for _, _, ids in said)], tokens)
    cut = [name for name, _, ids in said if ids[-1] not in chat.end_ids]
    if cut:
        limit = f"chat.max_response_tokens ({limits.max_response_tokens})"
        yield "missing_eos", f"over {limit}, so without an end token: {', '.join(cut)}"
    if merged:
        yield "not_a_prefix", f"the prompt's tokens change when followed by: {', '.join(merged)}"
    if not _equal([(n, turn.shown) for n, turn, _ in said]) and (equal := _equal([(n, ids) for n, _, ids in said])):
        yield "identical_when_cut", f"{equal[0]} and {equal[1]} are the same tokens"
    whole = len(prompt_ids) + max((len(ids) for _, _, ids in said), default=0)
    if len(prompt_ids) > (most := limits.max_prompt_tokens):
        yield "long_for_policy", f"{LONG_PROMPT} of {len(prompt_ids)} tokens, over chat.max_prompt_tokens ({most})"
    elif tokens.context is not None and whole > tokens.context:
        yield "long_for_policy", f"{whole} tokens, over the policy's context of {tokens.context}"
    if tokens.reward_length is not None:
        longest = max(tokens.reward_length(messages, turn) for _, turn in sides or [("", Message("assistant", ""))])
        if longest > tokens.reward_limit:
            yield "long_for_reward_model", f"{longest} tokens for the reward model, over {tokens.reward_limit}"


def _require_embeddings(rows: Iterable[tuple[int, ...]], tokens: Tokens) -> None:
    """Raise ``UserError`` for a token that the policy has no embedding for: no part of a run could read it."""
    beyond = max((number for ids in rows for number in ids), default=0)
    if tokens.rows is not None and beyond >= tokens.rows:
        raise UserError(
            f"policy.path: its tokenizer gives {tokens.chat.token(beyond)!r} the id {beyond}, but the model has "
            f"embeddings for {tokens.rows} tokens; add embeddings (resize_token_embeddings) or use its own tokenizer"
        )


def _spelled(prompt: Prompt, sides: Sequence[_Side], chat: _Chat) -> Iterator[Fault]:
    """Yield the first control token or header of each cause in the texts.

    One id may be both BOS and EOS: it counts as BOS in a prompt and as EOS in a response.
    """
    found: dict[Cause, str] = {}
    for name, turn in _turns(prompt, sides):
        for token, number in chat.spelled(turn.shown, turn.role):
            begins, ends = number is not None and number == chat.bos_id, number in chat.end_ids
            cause: Cause = "special_token"
            if begins and not (ends and name != "prompt"):
                cause = "doubled_bos"
            elif ends:
                cause = "doubled_eos"
            found.setdefault(cause, f"{name} spells {token}")
    yield from found.items()
