"""One response in Parquet, as tokens and text. Torch-free."""

import pyarrow as pa

from pipeline.storage.parquet.tables import Row
from pipeline.types import Response, TurnRow

_IDS = pa.list_(pa.int32())
TURN_ROW = pa.struct([("prompt_ids", _IDS), ("ids", _IDS), ("trained", pa.list_(pa.bool_()))])
RESPONSE_STRUCT = pa.struct(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("thinking_tokens", pa.int32()),
        ("hidden_tokens", pa.int32()),
        ("in_thought", pa.bool_()),
        ("rows", pa.list_(TURN_ROW)),
    ]
)


def response_row(response: Response) -> Row:
    """Return the response as a plain row."""
    return {
        "text": response.text,
        "token_ids": response.token_ids,
        "logprobs": response.logprobs,
        "finish_reason": response.finish_reason,
        "thinking_tokens": response.thinking_tokens,
        "hidden_tokens": response.hidden_tokens,
        "in_thought": response.in_thought,
        "rows": list(map(turn_row, response.rows)),
    }


def row_response(row: Row) -> Response:
    """Return the response from a plain row; those of earlier versions know no thoughts and rows."""
    return Response(
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        finish_reason=row["finish_reason"],
        thinking_tokens=row.get("thinking_tokens") or 0,
        hidden_tokens=row.get("hidden_tokens") or 0,
        in_thought=bool(row.get("in_thought")),
        rows=tuple(map(row_turn, row.get("rows") or ())),
    )


def turn_row(row: TurnRow) -> Row:
    """Return a row of turns as a plain one."""
    return {"prompt_ids": row.prompt_ids, "ids": row.ids, "trained": row.trained}


def row_turn(row: Row) -> TurnRow:
    """Return a row of turns from a plain one."""
    return TurnRow(tuple(row["prompt_ids"]), tuple(row["ids"]), tuple(row["trained"]))
