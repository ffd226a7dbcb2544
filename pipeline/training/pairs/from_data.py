"""A data set's preferences as tokens: pairs, groups of K responses, single responses.

Every response gets an end token, since its author stopped there. A response longer than
``limits.max_response_tokens`` is instead cut at the right, has no end token and is counted in
``cut`` (responses, kept). Dropped rows are counted by cause: ``long_prompt`` (over
``limits.max_prompt_tokens``), ``refused`` (the chat template does not render the turns), ``empty`` (a response without
text), ``identical`` (equal tokens, before or after the
cut). Rows are made one at a time, and counts are complete after the last one. Torch-free.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from pipeline.config import ChatSettings, RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.data.forms.answers import conversations
from pipeline.errors import RefusedTurnsError
from pipeline.training.pairs.make import from_groups
from pipeline.training.pairs.turns import turns_response
from pipeline.training.pairs.wins import Opponent, win_probabilities
from pipeline.types import (
    FinishReason,
    Group,
    Message,
    Pair,
    Preference,
    Prompt,
    Response,
    TextGroup,
    TextPair,
    TextPreference,
    TurnRow,
    Unpaired,
    UnpairedText,
)

_CAUSES = ("long_prompt", "empty", "identical", "cut")


class Parting(Protocol):
    """The part of ``rendering.thoughts.Thoughts`` that tokenising needs."""

    def response(
        self,
        prompt_ids: Sequence[int],
        ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: FinishReason,
        given: Message | None = None,
    ) -> Response:
        """Return the record of a response that a data set has as ``given``."""
        ...


class Tokeniser(Protocol):
    """The part of ``chat.Chat`` that tokenising needs."""

    end_ids: frozenset[int]

    @property
    def thoughts(self) -> Parting:
        """Tells thoughts from answers."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids up to the start of the assistant's turn."""
        ...

    def response_ids(
        self, messages: Sequence[Message], text: str, finished: bool = True, extra: str = ""
    ) -> tuple[int, ...]:
        """Return the ids of the assistant's turn, with the end token last unless it is cut."""
        ...


def from_texts(
    config: RunConfig, chat: Tokeniser, part: Iterable[TextPreference], round_: int, dropped: Counter[str]
) -> Iterator[Preference]:
    """Tokenise rows of the data set, all of one form, in order; ``dropped`` counts the dropped ones by cause."""
    rest = iter(part)
    first = next(rest, None)
    texts = chain(() if first is None else (first,), rest)
    match first:
        case TextGroup():
            cut = Counter[str]()
            given = (text for text in texts if isinstance(text, TextGroup))
            yield from from_groups(config, round_, tokenise_groups(given, chat, config.chat, dropped=cut), dropped)
            # Cut responses are counted once, whether or not drop_cut drops them.
            dropped.update({cause: count - dropped[cause] for cause, count in cut.items()})
        case UnpairedText():
            marked = (text for text in texts if isinstance(text, UnpairedText))
            yield from tokenise_unpaired(marked, chat, config.chat, dropped=dropped)
        case _:
            pairs = (text for text in texts if isinstance(text, TextPair))
            yield from tokenise_pairs(pairs, chat, config.chat, needs_of(config.loss).opponent, dropped=dropped)


def tokenise_pairs(
    texts: Iterable[TextPair],
    chat: Tokeniser,
    limits: ChatSettings,
    opponent: Opponent = "average",
    *,
    dropped: Counter[str],
) -> Iterator[Pair]:
    """Yield pairs in the order of ``texts``; an empty or identical response drops its pair.

    If the data set lacks win probabilities, they come from its two scores (whose average stands for the policy's
    answers), or else they are the soft label and 1 minus it: with a hard label, ``chosen`` always wins.
    """
    dropped.update(dict.fromkeys(_CAUSES, 0))
    for text in texts:
        prompt_ids = _prompt_ids(text.prompt, chat, limits, dropped)
        if prompt_ids is None:
            continue
        if not all(turn.shown.strip() for turn in text.answers):
            dropped["empty"] += 1
            continue
        given = _several(text, chat, limits, dropped) if text.several_turns else None
        if not text.several_turns:
            given = _given(text.answers, text.prompt, chat, dropped)
        if given is None:
            continue
        chosen, rejected = given
        if (chosen.token_ids, chosen.rows) == (rejected.token_ids, rejected.rows):
            dropped["identical"] += 1
            continue
        dropped["cut"] += sum(side.finish_reason == "length" for side in (chosen, rejected))
        yield pair_of(text, prompt_ids, chosen, rejected, opponent)


def tokenise_groups(
    texts: Iterable[TextGroup], chat: Tokeniser, limits: ChatSettings, *, dropped: Counter[str]
) -> Iterator[Group]:
    """Yield scored groups in the order of ``texts``, still with empty and identical responses."""
    dropped.update({"long_prompt": 0, "cut": 0})
    for text in texts:
        prompt_ids = _prompt_ids(text.prompt, chat, limits, dropped)
        if prompt_ids is None:
            continue
        responses = _given(text.answers, text.prompt, chat, dropped)
        if responses is None:
            continue
        dropped["cut"] += sum(response.finish_reason == "length" for response in responses)
        yield Group(text.prompt, prompt_ids, responses, text.rewards)


def tokenise_unpaired(
    texts: Iterable[UnpairedText], chat: Tokeniser, limits: ChatSettings, *, dropped: Counter[str]
) -> Iterator[Unpaired]:
    """Yield marked responses in the order of ``texts``; ``identical`` stays 0."""
    dropped.update(dict.fromkeys(_CAUSES, 0))
    for text in texts:
        prompt_ids = _prompt_ids(text.prompt, chat, limits, dropped)
        if prompt_ids is None:
            continue
        turn = Message("assistant", text.completion, text.extra)
        if not turn.shown.strip():
            dropped["empty"] += 1
            continue
        given = _given((turn,), text.prompt, chat, dropped)
        if given is None:
            continue
        response = given[0]
        dropped["cut"] += response.finish_reason == "length"
        yield Unpaired(text.prompt, prompt_ids, response, text.desirable)


def _prompt_ids(prompt: Prompt, chat: Tokeniser, limits: ChatSettings, dropped: Counter[str]) -> tuple[int, ...] | None:
    try:
        ids = chat.prompt_ids(prompt.messages)
    except RefusedTurnsError:
        dropped["refused"] += 1
        return None
    if len(ids) <= limits.max_prompt_tokens:
        return ids
    dropped["long_prompt"] += 1
    return None


def pair_of(
    text: TextPair, prompt_ids: tuple[int, ...], chosen: Response, rejected: Response, opponent: Opponent
) -> Pair:
    """Return a row of the data set as a pair; see ``tokenise_pairs`` for its win probabilities."""
    wins, wins_rejected = text.win_probability, text.win_probability_rejected
    if wins is None:
        if text.chosen_score is None or text.rejected_score is None:
            wins = text.soft_label
        else:
            scores = (text.chosen_score, text.rejected_score)
            wins, wins_rejected = win_probabilities(*scores, scores if opponent == "average" else None)
    return Pair(
        text.prompt,
        prompt_ids,
        chosen,
        rejected,
        chosen_score=text.chosen_score,
        rejected_score=text.rejected_score,
        soft_label=text.soft_label,
        win_probability=wins,
        win_probability_rejected=1 - wins if wins_rejected is None else wins_rejected,
        chosen_prior=text.chosen_prior,
        rejected_prior=text.rejected_prior,
    )


def _several(
    text: TextPair, chat: Tokeniser, limits: ChatSettings, dropped: Counter[str]
) -> tuple[Response, ...] | None:
    """Return both sides of a pair of several turns; None if a turn is refused or its context is too long."""
    ours, theirs = conversations(text)
    try:
        sides = [turns_response(text.prompt.messages, *both, chat) for both in ((ours, theirs), (theirs, ours))]
    except RefusedTurnsError:
        dropped["refused"] += 1
        return None
    if any(_longest_prompt(row) > limits.max_prompt_tokens for side in sides for row in side.rows):
        dropped["long_prompt"] += 1
        return None
    return tuple(sides)


def _longest_prompt(row: TurnRow) -> int:
    """Return the tokens before the last turn of a row."""
    last = len(row.ids) - next((n for n, flag in enumerate(reversed(row.trained)) if not flag), len(row.ids))
    return len(row.prompt_ids) + last


def _given(
    turns: Sequence[Message], prompt: Prompt, chat: Tokeniser, dropped: Counter[str]
) -> tuple[Response, ...] | None:
    found = []
    for turn in turns:
        try:
            ids = chat.response_ids(prompt.messages, turn.content, extra=turn.extra)
        except RefusedTurnsError:
            dropped["refused"] += 1
            return None
        end: FinishReason = "stop" if ids[-1] in chat.end_ids else "length"
        found.append(chat.thoughts.response(chat.prompt_ids(prompt.messages), ids, (), end, turn))
    return tuple(found)
