"""What real servers reply, over real sockets: what is read, what is asked again, what ends the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.errors import UserError
from reward_models.answers.missing import FINAL
from tests.reward_models.judge.test_judge import KEY, accounts, ask, group, settings
from tests.support.judge_server import JudgeServer, judge_server, longer_wins

Body = dict[str, Any]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer_wins) as made:
        yield made


def said(text: Any, **more: Any) -> Body:
    """A completion with ``text`` as its content; ``message`` adds to the message."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    usage = more.pop("usage", {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110})
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": message, **more}], "usage": usage}


def error(message: str, **more: Any) -> Body:
    return {"error": {"message": message, **more}}


def first_error(server: JudgeServer) -> str:
    with pytest.raises(UserError) as caught:
        ask(settings(server, {"concurrency": 1}), accounts(), group("a", "bb"))
    return str(caught.value)


TEXT = {"type": "text", "text": "Better.\nVerdict: A"}
EMPTY_PLACE = {"token": "B", "logprob": -0.1, "bytes": None, "top_logprobs": []}


@pytest.mark.parametrize(
    "reply",
    [
        said([TEXT]),
        said([{"type": "text", "text": "Better.\nVerd"}, {"type": "text", "text": "ict: A"}]),
        said(["Better.\n", "Verdict: A"]),
        said([{"type": "thinking", "thinking": [{"type": "text", "text": "Verdict: B"}]}, TEXT]),
        said(TEXT["text"], usage={"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}),
        said(TEXT["text"], usage=None),
        said(TEXT["text"], usage="none"),
        said(TEXT["text"], usage={"prompt_tokens": 100, "completion_tokens": -1}),
        said(TEXT["text"], logprobs={"content": [EMPTY_PLACE]}),
        said(TEXT["text"], logprobs={"content": [{**EMPTY_PLACE, "logprob": None, "top_logprobs": None}]}),
        said(TEXT["text"], logprobs={"tokens": ["B"], "token_logprobs": [-0.1]}),
        said(TEXT["text"], finish_reason=None),
        said(TEXT["text"], finish_reason="eos_token"),
        said(TEXT["text"], message={"refusal": None, "tool_calls": [], "reasoning_content": "Verdict: B"}),
        said(f"<think>Verdict: B\n</think>\n{TEXT['text']}"),
        said(f"First I thought\nVerdict: B\n</think>\n{TEXT['text']}"),
        said(f"[THINK]Verdict: B\n[/THINK]{TEXT['text']}"),
        said(f"<|channel|>analysis<|message|>Verdict: B<|end|><|channel|>final<|message|>{TEXT['text']}"),
        said(f"B forgets to close its <think> tag.\n{TEXT['text']}"),
        said(f"B begins with:\n<think>\nand forgets to close it.\n{TEXT['text']}"),
        said(f"{TEXT['text']}\n\nB ends with `</think>`."),
        said(f"<think>Verdict: B</think>B says <think> and </think>.\n{TEXT['text']}"),
        said(f"<think>Verdict: B <think>or A</think>\nVerdict: B\n</think>{TEXT['text']}"),
    ],
)  # fmt: skip
def test_what_is_needed_is_read_and_paid_for_once(server: JudgeServer, reply: Body) -> None:
    server.reply = lambda body: (200, reply)
    books = accounts()
    (labels,) = ask(settings(server), books, group("x", "y"))
    # A wins in either order, so neither response does.
    assert labels.wins[0][1] == 0.5 and books.counts["contradicted"] == 1
    assert len(server.seen) == 2 and not books.missing


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}, (100, 10)),
        ({"prompt_tokens": 100.0, "completion_tokens": 10.0}, (100, 10)),
        # Thoughts that are in the total alone are charged as well.
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 410}, (100, 310)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": None}, (100, 10)),
        ({"input_tokens": 100, "output_tokens": 10}, (100, 10)),
        ({"prompt_tokens": 100, "completion_tokens": None}, None),
        ({"prompt_tokens": True, "completion_tokens": 10}, None),
        ({"prompt_tokens": 1e16, "completion_tokens": 10}, None),
        ({"prompt_tokens": 10**400, "completion_tokens": 10}, None),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 10**400}, (100, 10)),
        ({"prompt_tokens": 100.5, "completion_tokens": 10}, None),
        ({"prompt_tokens": 100, "completion_tokens": float("inf")}, None),
        ({"prompt_tokens": [100], "completion_tokens": {"text": 10}}, None),
    ],
)
def test_tokens_that_a_reply_names_are_the_ones_paid_for(
    server: JudgeServer, usage: Body, tokens: tuple[int, int] | None
) -> None:
    server.reply = lambda body: (200, said("Verdict: A", usage=usage))
    books = accounts()
    ask(settings(server, {"price": {"input": 1.0, "output": 2.0}}), books, group("x", "y"))
    spent = books.spent()
    if tokens is not None:
        assert (spent.prompt_tokens, spent.completion_tokens) == (2 * tokens[0], 2 * tokens[1])
        assert spent.cost == pytest.approx(2e-6 * (tokens[0] + 2 * tokens[1]))
    else:
        assert (spent.prompt_tokens, spent.completion_tokens) == (0, 0)
        assert spent.cost > 2e-6 * 2 * 1024, "the most that the calls can have cost"


THOUGHT = {"message": {"reasoning_content": "Verdict: B is likely"}}


@pytest.mark.parametrize(
    ("status", "reply", "cause", "requests", "shown"),
    [
        # Answers that hold no verdict: asking again would cost as much and give the same.
        (200, said("My draft:\nVerdict: A", finish_reason="length"), "cut", 1, "My draft"),
        (200, said("My draft:\nVerdict: A", finish_reason="MAX_TOKENS"), "cut", 1, "My draft"),
        (200, said(None, finish_reason="length", message={"reasoning": "Verdict: A"}), "cut", 1, "Verdict: A"),
        (400, error("Could not finish the message because max_tokens or model output limit was reached."),
         "cut", 1, "Could not finish"),
        (200, said("<think>\nVerdict: A\n", finish_reason="length"), "cut", 1, "<think>"),
        (200, said("<think>\nVerdict: A\n"), "reasoning_only", 1, "<think>"),
        (200, said("<thinking>\nVerdict: A\n</thinking>"), "reasoning_only", 1, "<thinking>"),
        (200, said(None, **THOUGHT), "reasoning_only", 1, "is likely"),
        (200, said("", **THOUGHT), "reasoning_only", 1, "is likely"),
        (200, said([{"type": "thinking", "thinking": "Verdict: A"}]), "reasoning_only", 1, "Verdict: A"),
        (200, said(None, message={"refusal": "I cannot judge that."}), "declined", 1, "I cannot judge that."),
        (200, said([{"type": "refusal", "refusal": "Not this."}]), "declined", 1, "Not this."),
        (200, said("Verdict: A", finish_reason="content_filter"), "declined", 1, "content_filter"),
        (400, error("The prompt triggers a policy", code="content_filter", status=400), "declined", 1, "a policy"),
        (400, error("no", innererror={"code": "ResponsibleAIPolicyViolation"}), "declined", 1, "no"),
        (403, error("flagged", code=403, metadata={"reasons": ["violence"]}), "declined", 1, "flagged"),
        # Failures that asking again cannot mend.
        (200, 'data: {"choices": [{"delta": {"content": "Verdict: A"}}]}\n\n', "event_stream", 1, "delta"),
        (400, error("This model's maximum context length is 4096"), "refused", 1, "maximum context length is 4096"),
        (413, "<html>Request Entity Too Large</html>", "refused", 1, "Too Large"),
        (422, {"detail": [{"loc": ["body", "n", 0], "msg": "No", "input": "Verdict"}]}, "refused", 1, "body.n.0: No"),
        (500, error("Context size has been exceeded.", code=500, type="server_error"), "refused", 1, "exceeded"),
        (200, error("too long", code=400, type="exceed_context_size_error"), "refused", 1, "too long"),
        (200, {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
         "refused", 1, "too long"),
        # Failures that may pass.
        (200, error("Provider returned error", code=502), "server_error", 3, "Provider returned error"),
        (200, {**error("overloaded"), "choices": None}, "server_error", 3, "overloaded"),
        (200, {**said(""), "choices": [{"finish_reason": "error", "error": {"code": 502, "message": "lost"}}]},
         "server_error", 3, "lost"),
        (200, error("slow down", type="rate_limit_exceeded"), "rate_limited", 3, "slow down"),
        (200, {"base_resp": {"status_code": 1000, "status_msg": "unknown error"}}, "server_error", 3, "unknown error"),
        (429, [error("You exceeded your current quota, please check your plan and billing details.", code=429,
                     status="RESOURCE_EXHAUSTED")], "rate_limited", 3, "exceeded your current quota"),
        (503, error("Loading model", type="unavailable_error", code=503), "server_error", 3, "Loading model"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "server_error", 3, "busy"),
        (200, "<!DOCTYPE html><p>Sign in</p>", "malformed_answer", 3, "Sign in"),
        (200, "[" * 100_000, "malformed_answer", 3, "[["),
        (500, '{"error": ' * 900 + '"x"' + "}" * 900, "server_error", 3, "error"),
        (200, {"choices": "none"}, "malformed_answer", 3, "none"),
        (200, {"choices": [{"message": "Verdict: A"}]}, "malformed_answer", 3, "Verdict"),
        (200, said(None), "empty_answer", 3, None),
    ],
)  # fmt: skip
def test_replies_without_an_answer_are_named_and_asked_again_only_where_that_helps(
    server: JudgeServer, status: int, reply: Any, cause: str, requests: int, shown: str | None
) -> None:
    server.reply = lambda body: (status, reply)
    books = accounts()
    given = settings(server, {"attempts": 3, "concurrency": 1, "price": {"input": 1.0, "output": 1.0}})
    (labels,) = ask(given, books, group("x", "y"))
    assert labels.scores == (None, None) and books.missing == {cause: 2}
    assert len(server.seen) == 2 * requests
    assert shown in books.said[cause] if shown else cause not in books.said
    # Only what the server says under another status than 200 is free for certain.
    assert (books.spent().cost == 0) == (status != 200 and cause != "cut")
    server.reply = None
    ask(given, books, group("x", "y"))
    assert len(server.seen) == 2 * requests + (0 if cause in FINAL else 2), "an answer is never paid for twice"


def test_a_server_that_refuses_every_question_is_not_asked_them_all(server: JudgeServer) -> None:
    server.reply = lambda body: (400, error("logprobs are not supported"))
    books = accounts()
    groups = [group("a", "bb", prompt=f"p{n}") for n in range(20)]
    ask(settings(server, {"give_up_after": 5, "concurrency": 1}), books, *groups)
    assert books.missing == {"refused": 5, "unreachable": 35} and len(server.seen) == 5
    assert books.said == {"refused": "logprobs are not supported"}


@pytest.mark.parametrize(
    ("status", "reply", "sentence"),
    [
        (402, error("Insufficient Balance", type="unknown_error"), "Insufficient Balance"),
        (402, "Payment Required", "Payment Required"),
        (429, error("You exceeded your current quota.", type="insufficient_quota", code="insufficient_quota"),
         "You exceeded your current quota."),
        (429, error("You exceeded your current quota.", type="insufficient_quota", code=None), "your current quota"),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message":
               "Your credit balance is too low to access the API."}}, "credit balance is too low"),
        (403, error("Your team doesn't have any credits yet."), "doesn't have any credits"),
        (200, error("Insufficient credits", code=402), "Insufficient credits"),
    ],
)  # fmt: skip
def test_an_account_without_credit_ends_the_run_with_the_sentence_and_loses_nothing(
    server: JudgeServer, tmp_path: Path, status: int, reply: Any, sentence: str
) -> None:
    server.reply = lambda body: (200, said("Verdict: A")) if len(server.seen) <= 2 else (status, reply)
    given = settings(server, {"concurrency": 1})
    with pytest.raises(UserError) as caught:
        ask(given, accounts(tmp_path), group("a", "bb"), group("c", "dd"))
    assert sentence in str(caught.value) and "no credit left" in str(caught.value)
    assert len(server.seen) == 3, "it is not asked again"
    server.reply = None
    ask(given, books := accounts(tmp_path), group("a", "bb"), group("c", "dd"))
    assert books.counts["cached"] == 2 and len(server.seen) == 5 and not books.missing


MAX = error(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    type="invalid_request_error", param="max_tokens", code="unsupported_parameter",
)  # fmt: skip
HOT = error(
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
    type="invalid_request_error", param="temperature", code="unsupported_value",
)  # fmt: skip


def test_the_two_habits_of_servers_are_learnt_from_what_they_refuse(
    server: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(body: Body) -> tuple[int, Any]:
        if "max_tokens" in body:
            return 400, MAX
        return (400, HOT) if "temperature" in body else (200, said("Verdict: A"))

    server.reply = picky
    books = accounts()
    given = settings(server, {"concurrency": 1, "attempts": 1})
    ask(given, books, group("x", "y"), group("x", "z"))
    assert not books.missing and len(server.seen) == 4 + 2
    assert [sorted(body) for body in server.seen[1:]] == [
        ["max_completion_tokens", "messages", "model", "stream", "temperature"],
        *[["max_completion_tokens", "messages", "model", "stream"]] * 4,
    ]
    assert server.seen[-1]["max_completion_tokens"] == 1024 and server.seen[-1]["stream"] is False
    assert [record.message for record in caplog.records] == [
        "scorer.server: the server does not take max_tokens; max_completion_tokens is sent in its place. "
        "Set scorer.max_tokens_field=max_completion_tokens",
        "scorer.server: the server does not take temperature 0.0; none is sent. Set scorer.temperature=null",
    ]
    # With the settings, nothing is refused.
    server.seen.clear()
    ask(settings(server, temperature=None, max_tokens_field="max_completion_tokens"), accounts(), group("x", "y"))
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("refusal", "field", "sent"),
    [
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"],
                      "msg": "Extra inputs are not permitted", "input": 9}]}, "max_completion_tokens", "max_tokens"),
        (error("Unrecognized request argument supplied: max_completion_tokens"), "max_completion_tokens", "max_tokens"),
        (error("Provider returned error", code=400, metadata={"raw": json.dumps(MAX), "provider_name": "OpenAI"}),
         "max_tokens", "max_completion_tokens"),
    ],
)  # fmt: skip
def test_the_other_name_is_found_in_the_forms_of_other_servers(
    server: JudgeServer, refusal: Body, field: Any, sent: str
) -> None:
    server.reply = lambda body: (422, refusal) if field in body else (200, said("Verdict: A"))
    ask(settings(server, {"concurrency": 1}, max_tokens_field=field), books := accounts(), group("x", "y"))
    assert not books.missing and len(server.seen) == 3 and sent in server.seen[-1]


@pytest.mark.parametrize(
    "sentence",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 512",
        "max_tokens is too large: 1024. Values above 512 are not supported",
        "the prompt about temperature is too long",
        "logprobs are not supported with reasoning models",
    ],
)
def test_other_refusals_are_not_taken_for_habits(server: JudgeServer, sentence: str) -> None:
    server.reply = lambda body: (400, error(sentence))
    ask(settings(server, {"concurrency": 1}), books := accounts(), group("x", "y"))
    assert len(server.seen) == 2 and books.said == {"refused": sentence}
    assert all("max_tokens" in body and "temperature" in body for body in server.seen)


def test_a_server_that_refuses_either_name_is_not_asked_for_ever(server: JudgeServer) -> None:
    server.reply = lambda body: (400, error("Unsupported parameters: max_tokens, max_completion_tokens, temperature"))
    ask(settings(server, {"concurrency": 1}), books := accounts(), group("x", "y"))
    assert len(server.seen) == 4 and books.missing == {"refused": 2}


def test_azure_s_query_and_header(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", KEY)
    base = f"{server.url.removesuffix('/v1')}/openai/deployments/gpt"
    endpoint = {"base_url": base, "api_key_env": "JUDGE_TEST_KEY", "key_header": "api-key"}
    ask(settings(server, {**endpoint, "query": {"api-version": "2024-10-21"}}), accounts(), group("x", "y"))
    assert set(server.paths) == {"/openai/deployments/gpt/chat/completions?api-version=2024-10-21"}
    assert all(headers["api-key"] == KEY and "Authorization" not in headers for headers in server.headers_seen)


@pytest.mark.parametrize("key_header", ["Authorization", "api-key"])
def test_no_sentence_shows_the_key(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, key_header: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", KEY)
    endpoint = {"api_key_env": "JUDGE_TEST_KEY", "key_header": key_header, "attempts": 1}
    replies = [(400, error("x" * 290 + KEY)), (500, KEY), (200, said(KEY)), (200, said(None, message={"refusal": KEY}))]
    books = accounts(tmp_path)
    for number, reply in enumerate(replies):
        server.reply = lambda body, reply=reply: reply  # type: ignore[misc]
        ask(settings(server, endpoint), books, group("x", "y", prompt=str(number)))
    kept = json.dumps(books.take().plain())
    assert set(books.missing) == {"refused", "server_error", "unparsed", "declined"}
    assert kept.count("[hidden]") >= 3 and KEY not in kept and KEY[:12] not in kept
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY.encode() not in written
    server.reply = lambda body: (402, error(f"no money for {KEY}"))
    with pytest.raises(UserError) as caught:
        ask(settings(server, endpoint), books, group("x", "z"))
    assert KEY not in str(caught.value) and "[hidden]" in str(caught.value)


def test_waits_are_read_from_both_headers() -> None:
    from reward_models.judge.endpoint import retry_after

    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "9"}) == 9.0
    assert retry_after({"retry-after-ms": "soon", "retry-after": "9"}) == 9.0
    assert retry_after({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None and retry_after({}) is None


def test_log_probabilities_of_older_and_of_broken_replies(server: JudgeServer) -> None:
    # The form of the older completions (Together).
    older = {"tokens": ["A"], "token_logprobs": [-0.2], "top_logprobs": [{"A": -0.5, "B": -1.5}]}
    server.reply = lambda body: (200, said("A", logprobs=older, finish_reason="length"))
    (labels,) = ask(settings(server, verdict="logprobs"), accounts(), group("x", "y"))
    assert labels.wins[0][1] == 0.5 and len(server.seen) == 2
    for logprobs, cause, requests in (
        ({"content": [EMPTY_PLACE]}, "no_logprobs", 2),
        (None, "no_logprobs", 2),
        ({"content": [{**EMPTY_PLACE, "top_logprobs": [{"token": "A", "logprob": 3.0}]}]}, "malformed_answer", 4),
    ):
        server.seen.clear()
        reply = said("A", logprobs=logprobs, finish_reason="length")
        server.reply = lambda body, reply=reply: (200, reply)  # type: ignore[misc]
        ask(settings(server, {"attempts": 2}, verdict="logprobs"), books := accounts(), group("x", "y"))
        assert books.missing == {cause: 2} and len(server.seen) == requests


@pytest.mark.parametrize(
    "name",
    [
        "key", "api_key", "api-key", "subscription-key", "access_token", "code", "sig", "accessToken", "apiKey",
        "APIKey", "subscriptionKey", "SASToken", "clientSecret", "X-Amz-Signature", "sharedAccessSig", "key2",
    ],
)  # fmt: skip
def test_a_key_in_the_query_is_refused(server: JudgeServer, name: str) -> None:
    with pytest.raises(ValidationError, match=rf"server\.query\n.*{name}: a key would be written to the run's config"):
        settings(server, {"query": {name: "x"}})


def test_a_query_as_yaml_reads_it(server: JudgeServer) -> None:
    given = yaml.safe_load("{api-version: 2024-10-21, keyboard: 1, monkey: 1, maxTokens: 5, max_tokens: 5, keyId: 1}")
    assert settings(server, {"query": given}).server.query == {
        "api-version": "2024-10-21", "keyboard": "1", "monkey": "1", "maxTokens": "5", "max_tokens": "5", "keyId": "1",
    }  # fmt: skip
    for header in ("Host", "content-length", "a b", "x:y"):
        with pytest.raises(ValidationError, match=r"server\.key_header"):
            settings(server, {"key_header": header})


def test_where_the_server_is_decides_no_label(server: JudgeServer) -> None:
    plain, other = settings(server), settings(server, {"query": {"api-version": "1"}, "key_header": "api-key"})
    assert plain.identity() == other.identity() and not {"query", "key_header"} & {*plain.server.identity()}


def test_a_budget_that_is_used_up_from_the_start_is_the_cause_for_all(server: JudgeServer) -> None:
    groups = [group("a", "bb", prompt=f"p{n}") for n in range(20)]
    ask(settings(server, {"give_up_after": 5, "budget": {"calls": 0}}), books := accounts(), *groups)
    assert books.missing == {"budget": 40} and not server.seen
