"""Messages as bytes and as text: what comes out is what went in."""

import math

import pytest

from flows.workers.messages import Done, Failed, SampleCall, Sampled, decode, encode, encode_text
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response

KINDS = (Done, Failed, Sampled, SampleCall)


def test_log_probs_that_are_no_numbers_arrive_as_such() -> None:
    sent = Sampled((Response("a", (1, 2, 3), (math.nan, -math.inf, -0.1), "stop"),))
    for way in (encode, encode_text):
        (got,) = decode(way(sent), (Sampled,)).responses
        assert math.isnan(got.logprobs[0]) and got.logprobs[1:] == (-math.inf, -0.1)


@pytest.mark.parametrize("odd", [10**30, "half \ud83d", -(2**64)])
def test_settings_that_messagepack_cannot_hold_go_as_json(odd: int | str) -> None:
    sent = SampleCall((SampleRequest((1, 2), 3),), {"max_tokens": 4, "odd": odd})
    assert encode(sent)[:1] == b"{"
    assert decode(encode(sent), KINDS) == sent


def test_ordinary_messages_are_messagepack() -> None:
    for sent in (Done(), Failed("no {", "user"), Sampled((Response("é", (1,), (-0.5,), "length", 1),))):
        assert encode(sent)[:1] != b"{"
        assert decode(encode(sent), KINDS) == sent == decode(encode_text(sent), KINDS)


@pytest.mark.parametrize("bad", [b"", b"\xc1", b"{", b"\x83\xa4type\xa4done", encode(Done())[:-1]])
def test_what_is_no_message_is_an_error_in_words(bad: bytes) -> None:
    with pytest.raises(ValueError) as raised:
        decode(bad, KINDS)
    assert str(raised.value)
