"""One response in Parquet, as tokens and text. Torch-free."""

import pyarrow as pa

from pipeline.storage.tables import Row
from pipeline.types import Response

RESPONSE_STRUCT = pa.struct(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("thinking_tokens", pa.int32()),
        ("hidden_tokens", pa.int32()),
        ("in_thought", pa.bool_()),
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
    }


def row_response(row: Row) -> Response:
    """Return the response from a plain row; those of earlier versions know no thoughts."""
    return Response(
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        finish_reason=row["finish_reason"],
        thinking_tokens=row.get("thinking_tokens") or 0,
        hidden_tokens=row.get("hidden_tokens") or 0,
        in_thought=bool(row.get("in_thought")),
    )
