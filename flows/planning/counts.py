"""What a round of a config is made of: examples of the lengths that are trained on, and counts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import comb
from typing import Any

from flows.planning.arithmetic import Round
from flows.planning.plan_examples import Ids, of_length, stand_in
from flows.planning.tables import Tables
from pipeline.config import RunConfig
from pipeline.config.loss.needs import references_of
from pipeline.config.loss.supply import reads_contrast, stores_reference, takes_groups, takes_texts
from pipeline.losses import Loss
from pipeline.models.chat import Chat
from pipeline.pairs.from_data import tokenise_groups, tokenise_pairs, tokenise_unpaired
from pipeline.training.batches.examples import Example, Kind
from pipeline.types import Group, Pair, TextGroup, TextPair, Unpaired, UserError


@dataclass(frozen=True)
class Planned:
    """A round to plan with.

    Attributes:
        counts: see there.
        examples: of the lengths that are trained on; where those are sampled, the longest that there can be.
        warm: those of the warm start, if there is one.
        prompts: of the round, as tokens.
    """

    counts: Round
    examples: list[Example]
    warm: list[Example]
    prompts: list[Ids]


def plan_round(config: RunConfig, tables: Tables, chat: Chat, settings: Any, response_tokens: int | None) -> Planned:
    """What a round of ``config`` is made of; responses to come have ``response_tokens`` tokens, or all they may have.

    Raises:
        UserError: nothing is short enough to be trained on.
    """
    text, loss = settings.get_text_config(), Loss(config.loss.preset, config.loss)
    vocabulary, context = text.vocab_size, getattr(text, "max_position_embeddings", None)
    prompts = [ids for p in tables.prompts if len(ids := chat.prompt_ids(p.messages)) <= config.chat.max_prompt_tokens]
    if not prompts:
        raise UserError("chat.max_prompt_tokens: all prompts are longer")
    if config.mode == "offline":
        examples = [*_given_examples(config, tables, chat, loss, vocabulary)]
    else:
        examples = [*_sampled_examples(config, prompts, loss, vocabulary, context)]
    if not examples:
        raise UserError("pairs: none is short enough to be trained on (chat.max_prompt_tokens)")
    counts = _counts(config, tables, prompts, examples, response_tokens)
    return Planned(counts, examples, _warm_examples(config, tables, chat), prompts)


def _counts(
    config: RunConfig, tables: Tables, prompts: list[Ids], examples: list[Example], response_tokens: int | None
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
    """Models that score the examples before training."""
    if not stores_reference(config.loss):
        return 0
    return max(1, references_of(config.loss)) + 2 * reads_contrast(config.loss)


def made_examples(config: RunConfig, prompts: int) -> int:
    """Examples that a round makes of its groups, at most."""
    sampled, n, pairing = min(config.prompts_per_round or prompts, prompts), config.sampling.n, config.pairing
    of_prompt = 1
    if not takes_groups(config.loss):
        match pairing.rule:
            case "all":
                of_prompt = min(comb(n, 2), pairing.max_pairs or comb(n, 2))
            case "median_split":
                of_prompt = n // 2
            case "marked":
                of_prompt = n
            case _:
                of_prompt = 1
    beside = 0.0 if config.replay is None else config.replay.share + config.replay.anchor
    return round(sampled * of_prompt / (1 - beside))


def _sampled_examples(
    config: RunConfig, prompts: list[Ids], loss: Loss, vocabulary: int, context: int | None
) -> Iterator[Example]:
    """The longest prompts with responses as long as they may be, enough for a batch."""
    kind: Kind = "pair"
    if takes_groups(config.loss):
        kind = "group"
    elif takes_texts(config.loss):
        kind = "text"
    elif config.pairing.rule == "marked":
        kind = "unpaired"
    count = {"pair": 2, "group": config.sampling.n, "text": 1, "unpaired": 1}[kind]
    longest = sorted(prompts, key=len, reverse=True)
    for index in range(max(2, config.training.batch_size)):
        # A prompt that comes again must be another one, or it is computed once.
        ids = longest[index] if index < len(longest) else of_length(index, len(longest[-1]), vocabulary)
        room = config.sampling.max_tokens if context is None else min(config.sampling.max_tokens, context - len(ids))
        answers = [of_length(index * count + k, max(1, room), vocabulary) for k in range(count)]
        yield stand_in(str(index), kind, ids, answers, loss, vocabulary)


def _given_examples(config: RunConfig, tables: Tables, chat: Chat, loss: Loss, vocabulary: int) -> Iterator[Example]:
    """Those of the first round's slice of the data set."""
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


def _parts(made: Group | Pair | Unpaired, loss: Loss) -> tuple[Kind, Ids, list[Ids]]:
    match made:
        case Group():
            answers = [r.token_ids for r in made.responses]
            # Without a list head the best and the worst of a group become a pair.
            return (
                ("group", made.prompt_ids, answers)
                if takes_groups(loss.composition)
                else ("pair", made.prompt_ids, sorted(answers, key=len)[-2:])
            )
        case Unpaired():
            return "unpaired", made.prompt_ids, [made.response.token_ids]
        case Pair():
            if takes_texts(loss.composition):
                return "text", made.prompt_ids, [made.chosen.token_ids]
            return "pair", made.prompt_ids, [made.chosen.token_ids, made.rejected.token_ids]


def _warm_examples(config: RunConfig, tables: Tables, chat: Chat) -> list[Example]:
    if config.warm_start is None:
        return []
    found = []
    for index, (prompt, text) in enumerate(tables.texts):
        ids = chat.prompt_ids(prompt.messages)
        if len(ids) <= config.chat.max_prompt_tokens:
            found.append(Example.text(str(index), ids, chat.response_ids(prompt.messages, text)))
    return found


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 0.0
