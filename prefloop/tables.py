"""Rows of a run as tables of pyarrow: what people ask of them, without token ids. Torch-free."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.types import Group, Pair, Preference, Prompt, Unpaired

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT = [("prompt_id", pa.string()), ("prompt", pa.string()), ("messages", _TURNS), ("answer", pa.string())]
SAMPLES = pa.schema(
    [
        *_PROMPT,
        ("number", pa.int32()),
        ("response", pa.string()),
        ("score", pa.float64()),
        ("tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("finish_reason", pa.string()),
    ]
)
_NUMBERS = ("chosen_score", "rejected_score", "soft_label")
PAIR_TABLE = pa.schema(
    [
        *_PROMPT,
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        *((name, pa.float64()) for name in _NUMBERS),
        ("round", pa.int32()),
    ]
)
GROUP_TABLE = pa.schema(
    [*_PROMPT, ("responses", pa.list_(pa.string())), ("rewards", pa.list_(pa.float64()))],
)
MARKED_TABLE = pa.schema([*_PROMPT, ("completion", pa.string()), ("label", pa.bool_())])


def metric_table(rounds: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return a row per round; metrics inside others have the outer one's name and a dot before theirs."""
    rows = [dict(_flat(metrics, "")) for metrics in rounds]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def sample_table(groups: Iterable[Group]) -> pa.Table:
    """Return a row per response: its place among its prompt's, score, and log-prob (the sum over tokens, in nats).

    A score is null where there is no label, a log-prob where the response was not sampled by prefloop.
    """
    rows = [
        {
            **_prompt(group.prompt),
            "number": number,
            "response": response.text,
            "score": group.scores[number] if group.scores else None,
            "tokens": len(response.token_ids),
            "logprob": sum(response.logprobs) if response.logprobs else None,
            "finish_reason": response.finish_reason,
        }
        for group in groups
        for number, response in enumerate(group.responses)
    ]
    return pa.Table.from_pylist(rows, SAMPLES)


def preference_table(preferences: Iterable[Preference]) -> pa.Table:
    """Return a row per pair, per group (texts and rewards in lists), or per marked response, as the round has them."""
    rows = [_preference(preference) for preference in preferences]
    schemas = (GROUP_TABLE, MARKED_TABLE)
    schema = next((one for one in schemas if rows and one.names[-1] in rows[0]), PAIR_TABLE)
    return pa.Table.from_pylist(rows, schema)


def _preference(row: Preference) -> dict[str, Any]:
    match row:
        case Pair():
            numbers = dict(zip(_NUMBERS, (row.chosen_score, row.rejected_score, row.soft_label), strict=True))
            texts = {"chosen": row.chosen.text, "rejected": row.rejected.text}
            return {**_prompt(row.prompt), **texts, **numbers, "round": row.round}
        case Group():
            said = [response.text for response in row.responses]
            return {**_prompt(row.prompt), "responses": said, "rewards": [*row.scores]}
        case Unpaired():
            return {**_prompt(row.prompt), "completion": row.response.text, "label": row.desirable}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    turns = [message for message in prompt.messages if message.is_turn]
    told = [message.shown if len(turns) == 1 else f"{message.role}: {message.shown}" for message in turns]
    plain = [{"role": message.role, "content": message.content} for message in turns]
    return {"prompt_id": prompt.id, "prompt": "\n".join(told), "messages": plain, "answer": prompt.answer}


def _flat(metrics: Mapping[str, Any], before: str) -> Iterable[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _column(values: list[Any]) -> pa.Array:
    """A column; numbers are float64 if one of them is, and values that no column holds together become text."""
    try:
        return pa.array(values, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
