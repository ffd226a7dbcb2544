"""The contents of a round of a config: examples with the lengths that are trained on, and counts."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from flows.planning.arithmetic import Round, made_examples
from flows.preflight.tokens import tokens_for_dropping
from pipeline.config import RunConfig
from pipeline.config.loss.components import GivenPrior, GivenWeights
from pipeline.config.loss.needs import ExampleKind, needs_of
from pipeline.data.counts import Contents
from pipeline.data.run_data import HELD_OUT_PAIRS, Text, open_data
from pipeline.errors import UserError
from pipeline.losses import Loss
from pipeline.models.chat import Chat
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.pairs.from_data import tokenise_groups, tokenise_pairs, tokenise_unpaired
from pipeline.types import Group, Pair, Prompt, Response, TextGroup, TextPair, Unpaired, UnpairedText


@dataclass(frozen=True)
class Tables:
    """The tables that the data stage would write, except held-out pairs; at most one of the three forms has rows."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    texts: list[Text]
    contents: Contents
    pairs: list[TextPair] = field(default_factory=list)
    groups: list[TextGroup] = field(default_factory=list)
    unpaired: list[UnpairedText] = field(default_factory=list)


def load_data(config: RunConfig) -> Tables:
    """Read and split the data that the config names; skip rows that cannot be read. Raises ``UserError``."""
    run_data, contents = open_data(config, tokens_for_dropping(config)), Contents()
    tables = Tables([*run_data.prompts()], [*run_data.split.held_out], [*run_data.texts()], contents)
    for table, row in run_data.preferences():
        if table == HELD_OUT_PAIRS:
            continue
        contents.add(row)
        match row:
            case TextPair():
                tables.pairs.append(row)
            case TextGroup():
                tables.groups.append(row)
            case UnpairedText():
                tables.unpaired.append(row)
    return tables


_Ids = tuple[int, ...]


def stand_in(
    id: str, kind: ExampleKind, prompt: _Ids, responses: Sequence[_Ids], loss: Loss, vocabulary: int
) -> Example:
    """An example on which ``loss`` can be computed.

    Scores and reference log-probabilities are those of models that know nothing. Any further response that the loss
    reads, for calibration or mismatched, is as long as the first.
    """
    nats = -math.log(vocabulary)

    def continuation(ids: _Ids, rank: int = 0) -> Continuation:
        return Continuation(
            ids,
            references=((nats,) * len(ids),) * loss.needs.references,
            weights=(1.0,) * len(ids) if isinstance(loss.composition.inputs.weights, GivenWeights) else None,
            prior=nats * len(ids) if isinstance(loss.composition.inputs.prior, GivenPrior) else None,
            reward=-float(rank),
            win_probability=0.5,
            advantages=(1.0,) * len(ids) if loss.needs.advantages else None,
            returns=(1.0,) * len(ids) if loss.needs.advantages else None,
        )

    return Example(
        id,
        prompt,
        kind,
        tuple(continuation(ids, rank) for rank, ids in enumerate(responses)),
        desirable=int(id) % 2 == 0 if kind == "unpaired" else None,
        dispersion=1.0,
        calibration=continuation(responses[0][::-1]) if "calibration" in loss.needs else None,
        mismatched=continuation(responses[0][::-1]) if loss.needs.mismatched(kind) else None,
    )


def of_length(start: int, length: int, vocabulary: int) -> _Ids:
    """``length`` tokens; a different ``start`` gives different tokens."""
    return tuple((start + 7 * i) % vocabulary for i in range(length))


@dataclass(frozen=True)
class PlannedRound:
    """A round to plan for.

    Attributes:
        counts: the round's size.
        examples: with the lengths that are trained on; if they are sampled, the longest possible.
        warm: examples of the warm start, if there is one.
        prompts: the round's prompts, as tokens.
    """

    counts: Round
    examples: list[Example]
    warm: list[Example]
    prompts: list[_Ids]


def plan_round(
    config: RunConfig, tables: Tables, chat: Chat, settings: Any, response_tokens: int | None
) -> PlannedRound:
    """Plan a round of ``config``; responses to come have ``response_tokens`` tokens, or the most allowed.

    Raises:
        UserError: nothing is short enough to train on.
    """
    text, loss = settings.get_text_config(), Loss(config.loss.preset, config.loss)
    vocabulary, context = text.vocab_size, getattr(text, "max_position_embeddings", None)
    tokenised = (chat.prompt_ids_if_written(prompt.messages) for prompt in tables.prompts)
    written = [ids for ids in tokenised if ids is not None]
    prompts = [ids for ids in written if len(ids) <= config.chat.max_prompt_tokens]
    if not prompts:
        raise UserError(
            f"chat.max_prompt_tokens: no prompt is left: {len(written)} are longer, and the chat template refuses "
            f"{len(tables.prompts) - len(written)}"
        )
    if config.mode == "offline":
        examples = [*_given_examples(config, tables, chat, loss, vocabulary)]
    else:
        examples = [*_sampled_examples(config, prompts, loss, vocabulary, context)]
    if not examples:
        raise UserError("pairs: all are too long to train on (chat.max_prompt_tokens)")
    counts = _counts(config, tables, prompts, examples, response_tokens)
    return PlannedRound(counts, examples, _warm_examples(config, tables, chat), prompts)


def _counts(
    config: RunConfig, tables: Tables, prompts: list[_Ids], examples: list[Example], response_tokens: int | None
) -> Round:
    offline = config.mode == "offline"
    sampled = min(response_tokens or config.sampling.max_tokens, config.sampling.max_tokens)
    answers = [len(c.ids) for e in examples for c in e.responses]
    return Round(
        prompts=0 if offline else min(config.prompts_per_round or len(prompts), len(prompts)),
        responses=config.sampling.n,
        prompt_tokens=_mean([len(ids) for ids in prompts]),
        response_tokens=sampled,
        examples=len(examples) if offline else made_examples(config, len(prompts)),
        continuations=len(examples[0].continuations),
        example_prompt_tokens=_mean(
            [len(e.prompt_ids) for e in examples] if offline else [len(ids) for ids in prompts]
        ),
        example_response_tokens=_mean(answers) if offline else sampled,
        held_out=len(tables.held_out),
        held_out_responses=1 + config.evaluation.samples,
        references=_passes(config),
        epochs=config.training.epochs,
        packing=config.training.packing,
    )


def _passes(config: RunConfig) -> int:
    """Number of models that score the examples before training."""
    if not needs_of(config.loss).stored_reference:
        return 0
    return max(1, needs_of(config.loss).references) + 2 * needs_of(config.loss).contrast


def _sampled_examples(
    config: RunConfig, prompts: list[_Ids], loss: Loss, vocabulary: int, context: int | None
) -> Iterator[Example]:
    """The longest prompts with responses of the greatest length allowed, enough for a batch."""
    kind: ExampleKind = "pair"
    if needs_of(config.loss).groups:
        kind = "group"
    elif needs_of(config.loss).only_chosen:
        kind = "text"
    elif config.pairing.rule == "marked":
        kind = "unpaired"
    count = {"pair": 2, "group": config.sampling.n, "text": 1, "unpaired": 1}[kind]
    longest = sorted(prompts, key=len, reverse=True)
    for index in range(max(2, config.training.batch_size)):
        # A repeated prompt must be changed, or it would be computed only once.
        ids = longest[index] if index < len(longest) else of_length(index, len(longest[-1]), vocabulary)
        room = config.sampling.max_tokens if context is None else min(config.sampling.max_tokens, context - len(ids))
        answers = [of_length(index * count + k, max(1, room), vocabulary) for k in range(count)]
        yield stand_in(str(index), kind, ids, answers, loss, vocabulary)


def _given_examples(config: RunConfig, tables: Tables, chat: Chat, loss: Loss, vocabulary: int) -> Iterator[Example]:
    """Examples of the first round's slice of the data set."""
    rows: Sequence[TextPair | TextGroup] = [*tables.pairs, *tables.groups]
    part = slice(0, max(len(rows), len(tables.unpaired)) // config.rounds)
    dropped = Counter[str]()
    groups = (row for row in rows[part] if isinstance(row, TextGroup))
    pairs = (row for row in rows[part] if isinstance(row, TextPair))
    every: Iterator[Group | Pair | Unpaired] = chain(
        tokenise_groups(groups, chat, config.chat, dropped=dropped),
        tokenise_pairs(pairs, chat, config.chat, dropped=dropped),
        tokenise_unpaired(tables.unpaired[part], chat, config.chat, dropped=dropped),
    )
    for index, made in enumerate(every):
        yield stand_in(str(index), *_parts(made, loss), loss, vocabulary)


def _parts(made: Group | Pair | Unpaired, loss: Loss) -> tuple[ExampleKind, _Ids, list[_Ids]]:
    match made:
        case Group():
            answers = [r.token_ids for r in made.responses]
            # Without a list head the best and the worst of a group become a pair.
            return (
                ("group", made.prompt_ids, answers)
                if needs_of(loss.composition).groups
                else ("pair", made.prompt_ids, sorted(answers, key=len)[-2:])
            )
        case Unpaired():
            return "unpaired", made.prompt_ids, [made.response.token_ids]
        case Pair():
            if needs_of(loss.composition).only_chosen:
                return "text", made.prompt_ids, [_beyond(made.prompt_ids, made.chosen)]
            return "pair", made.prompt_ids, [_beyond(made.prompt_ids, side) for side in (made.chosen, made.rejected)]


def _beyond(prompt: _Ids, response: Response) -> _Ids:
    """Return all tokens that models read for a response, without one prompt."""
    if not response.rows:
        return response.token_ids
    return tuple(token for row in response.rows for token in (*row.prompt_ids, *row.ids))[len(prompt) :]


def _warm_examples(config: RunConfig, tables: Tables, chat: Chat) -> list[Example]:
    if config.warm_start is None:
        return []
    found = []
    for index, (prompt, text) in enumerate(tables.texts):
        ids = chat.prompt_ids_if_written(prompt.messages)
        if ids is not None and len(ids) <= config.chat.max_prompt_tokens:
            found.append(Example.text(str(index), ids, chat.response_ids(prompt.messages, text)))
    return found


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 0.0
