"""Replies with anything in any field: each is read rightly or has a cause, and no call stays under way."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config import JudgeScorer
from reward_models.answers.missing import Answer
from reward_models.judge.failures import FailedCallError, read_error
from reward_models.judge.judge import Judge
from reward_models.judge.replies import parsed, read_reply, tokens_used
from reward_models.judge.verdicts import read_verdict
from tests.reward_models.judge.test_judge import accounts, ask, group, settings
from tests.support.judge_server import JudgeServer, judge_server, longer_wins

Path = tuple[str | int, ...]
TOP = [{"token": "A", "logprob": -0.5}, {"token": "B", "logprob": -1.0}]
WHOLE: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"content": [{"type": "text", "text": "Verdict: A"}], "refusal": None, "reasoning": "Hm."},
            "logprobs": {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": TOP}]},
        }
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}
OLDER: dict[str, Any] = {**WHOLE, "choices": [{**WHOLE["choices"][0], "logprobs": {"top_logprobs": [{"A": -0.5}]}}]}
ERROR: dict[str, Any] = {
    "error": {
        "message": "no",
        "code": 400,
        "type": "x",
        "status": "x",
        "param": "x",
        "metadata": {"raw": "x", "code": "x", "reasons": ["x"]},
        "innererror": {"code": "x"},
        "errors": [{"loc": ["body", "x"], "msg": "no"}],
    }
}
BASE: dict[str, Any] = {"base_resp": {"status_code": 1000, "status_msg": "no"}, "success": False, "object": "error"}
DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, 7, -1, 1e16, 1e308, 10**400, -(10**400), 0.5, math.nan, math.inf, -math.inf, "", "x",
    "9" * 5000, "\ud800", [], {}, [[]], [None], [{}], {"x": 1}, {"text": 5}, [{"type": []}], [1, "x"], DEEP,
]  # fmt: skip


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, held in inner:
        yield from places(held, (*at, name))


def changed(whole: Any, at: Path, odd: Any) -> Any:
    if not at:
        return odd
    found = copy.deepcopy(whole)
    held = found
    for name in at[:-1]:
        held = held[name]
    held[at[-1]] = odd
    return found


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer_wins) as made:
        yield made


def answered(content: bytes, given: JudgeScorer) -> Answer | None:
    """What is read of a reply; None if it has a cause. Any other exception is what this file looks for."""
    for status in (200, 400, 500):
        error = read_error(status, content)
        if error is not None:
            assert error.kind and all(isinstance(name, str) for name in error.names)
    try:
        plain = parsed(content, "application/json")
        tokens = tokens_used(plain)
        assert tokens is None or all(0 <= count <= 10**9 for count in tokens)
        return read_verdict(read_reply(plain, logprobs=given.verdict == "logprobs"), given)
    except FailedCallError as failure:
        assert failure.cause
        return None


@pytest.mark.parametrize("whole", [WHOLE, OLDER, ERROR, BASE], ids=["usual", "older", "error", "base"])
@pytest.mark.parametrize("verdict", ["text", "logprobs"])
def test_every_odd_value_in_every_field_is_read_or_has_a_cause(
    server: JudgeServer, whole: dict[str, Any], verdict: str
) -> None:
    given = settings(server, verdict=verdict)
    for at in places(whole):
        for odd in ODD:
            answer = answered(json.dumps(changed(whole, at, odd)).encode(), given)
            if answer is not None and answer.value is not None:
                assert 0 <= answer.value <= 1, (at, odd)


LOGPROBS: list[tuple[Any, float | None]] = [
    (-(10**400), 1.0), (-math.inf, 1.0), (-9999, 1.0), (0, 0.5), (0.0, 0.5), (False, None), (True, None),
    (10**400, None), (math.nan, None), ("-1", None), (None, None),
]  # fmt: skip


@pytest.mark.parametrize(("logprob", "value"), LOGPROBS, ids=map(str, range(len(LOGPROBS))))
def test_log_probabilities_of_any_size(server: JudgeServer, logprob: Any, value: float | None) -> None:
    given = settings(server, verdict="logprobs")
    whole = changed(WHOLE, ("choices", 0, "logprobs", "content", 0, "top_logprobs"), TOP)
    whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [
        {"token": "A", "logprob": 0}, {"token": "B", "logprob": logprob},
    ]  # fmt: skip
    answer = answered(json.dumps(whole).encode(), given)
    assert (None if answer is None else answer.value) == value


@pytest.mark.parametrize("verdict", ["text", "logprobs"])
def test_no_odd_reply_leaves_its_call_under_way(server: JudgeServer, verdict: str) -> None:
    at = ("choices", 0, "logprobs", "content", 0, "top_logprobs", 0, "logprob")
    odd = [changed(WHOLE, ("usage", name), value) for name in WHOLE["usage"] for value in (1e16, 10**400, math.nan)]
    odd += [changed(WHOLE, at, value) for value in (-(10**400), False, math.nan)]
    odd += [changed(WHOLE, ("choices", 0, "finish_reason"), DEEP)]
    # Room for one call at a time: a reservation that stayed would hold up the next for ever.
    endpoint = {"concurrency": 1, "attempts": 1, "price": {"input": 1.0, "output": 1.0}, "budget": {"cost": 1.0}}
    given, books = settings(server, endpoint, verdict=verdict), accounts()
    for number, reply in enumerate(odd):
        server.reply = lambda body, reply=reply: (200, reply)  # type: ignore[misc]
        ask(given, books, group("x", "y", prompt=str(number)))
    spent, labeller = books.spent(), Judge(given, books).version
    assert spent.calls == len(server.seen) == 2 * len(odd)
    assert (
        0 < spent.cost < 1 and not books.ledger.spent(lambda call: call.outcome in ("under_way", "interrupted")).calls
    )
    assert books.ledger.spent(lambda call: call.labeller == labeller) == spent
