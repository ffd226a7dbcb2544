"""Turns of the assistant as rows: what is trained on is what the template writes of each turn."""

import json
from collections import Counter

import pytest

from pipeline.config import ChatSettings
from pipeline.data.forms.answers import turns_text
from pipeline.models.chat import Chat
from pipeline.models.rendering.template import ChatTemplate
from pipeline.training.pairs.from_data import tokenise_pairs
from pipeline.types import Message, Pair, Prompt, Response, TextPair
from tests.pipeline.models.rendering.test_thoughts import SAMPLED, thinker

LIMITS = ChatSettings(max_prompt_tokens=4000, max_response_tokens=4000)
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")
TOKENS = {
    "llama3": LLAMA,
    "qwen2_5": SAMPLED["qwen3"][0],
    **{name: SAMPLED[name][0] for name in ("qwen3", "qwen3_6", "gptoss", "lfm2_2_5", "nemotron_3_nano")},
}
ASKED = (Message("user", "where is the cat?"),)
CALL = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"x": "mat"}}}]})
LOOKED = Message("tool", "a cat", json.dumps({"name": "look"}))


def said(text: str) -> Message:
    return Message("assistant", text)


def asks(text: str) -> Message:
    return Message("user", text)


def paired(chat: Chat, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Pair:
    text = TextPair(
        Prompt(ASKED),
        chosen[-1].content,
        rejected[-1].content,
        chosen_extra=chosen[-1].extra,
        rejected_extra=rejected[-1].extra,
        chosen_turns=turns_text(chosen[:-1]),
        rejected_turns=turns_text(rejected[:-1]),
    )
    dropped: Counter[str] = Counter()
    (pair,) = tokenise_pairs([text], chat, LIMITS, dropped=dropped)
    assert not any(dropped.values())
    return pair


def trained(response: Response, chat: Chat) -> list[str]:
    """The trained stretches of the rows, spelled out."""
    found = []
    for row in response.rows:
        last = False
        for token, flag in zip(row.ids, row.trained, strict=True):
            if flag and not last:
                found.append("")
            if flag:
                found[-1] += chat.spell([token])
            last = flag
    return found


CHOSEN = (said("on the mat"), asks("sure?"), said("yes, sure"), asks("why?"), said("I saw it"))
REJECTED = (said("a dog"), asks("sure?"), said("yes, sure"), asks("what?"), said("ran"), asks("ok"), said("bye"))


@pytest.mark.parametrize("name", TOKENS)
def test_each_turn_is_trained_on_as_the_template_writes_it_for_inference(name: str) -> None:
    tokenizer = thinker(name, TOKENS[name])
    chat, template = Chat(tokenizer, LIMITS), ChatTemplate(tokenizer)
    pair = paired(chat, CHOSEN, REJECTED)
    for side, turns, places in ((pair.chosen, CHOSEN, (0, 4)), (pair.rejected, REJECTED, (0, 4, 6))):
        flagged = [token for row in side.rows for token, flag in zip(row.ids, row.trained, strict=True) if flag]
        assert side.token_ids == tuple(flagged)
        stretches = [
            (row, n)
            for row in side.rows
            for n in range(len(row.ids))
            if row.trained[n] and not (n and row.trained[n - 1])
        ]
        for place, (row, begin) in zip(places, stretches, strict=True):
            asked = [*ASKED, *turns[:place]]
            prompt, whole_text = template.render(asked, True), template.render([*asked, turns[place]], False)
            before = row.prompt_ids + row.ids[:begin]
            assert before == chat.prompt_ids(asked)
            assert chat.spell(before) == chat.spell(chat.prompt_ids(asked))
            end = next((n for n in range(begin, len(row.ids)) if not row.trained[n]), len(row.ids))
            if whole_text.startswith(prompt):
                rest = whole_text[len(prompt) :]
                assert rest.startswith(chat.spell(row.ids[begin:end]))
                assert not rest.removeprefix(chat.spell(row.ids[begin:end])).strip()


def test_a_template_that_goes_on_from_its_turns_needs_one_row_and_others_one_for_each_context() -> None:
    chat = Chat(thinker("llama3", TOKENS["llama3"]), LIMITS)
    pair = paired(chat, CHOSEN, REJECTED)
    assert (len(pair.chosen.rows), len(pair.rejected.rows)) == (1, 1)
    # The turn that both sides share, and all of others, are read but not trained on.
    assert trained(pair.chosen, chat) == ["on the mat<|eot_id|>", "I saw it<|eot_id|>"]
    assert trained(pair.rejected, chat) == ["a dog<|eot_id|>", "ran<|eot_id|>", "bye<|eot_id|>"]
    # Qwen 3 writes a thought into an answer and leaves it out of the next turn's context.
    chat = Chat(thinker("qwen3", TOKENS["qwen3"]), LIMITS)
    pair = paired(chat, CHOSEN, REJECTED)
    assert (len(pair.chosen.rows), len(pair.rejected.rows)) == (2, 3)
    assert trained(pair.chosen, chat) == [
        "<think>\n\n</think>\n\non the mat<|im_end|>",
        "<think>\n\n</think>\n\nI saw it<|im_end|>",
    ]
    assert "on the mat" in chat.spell(pair.chosen.rows[1].prompt_ids)
    assert "<think>" not in chat.spell(pair.chosen.rows[1].prompt_ids)


def test_calls_of_tools_are_trained_on_and_their_results_are_not() -> None:
    chat = Chat(thinker("qwen2_5", TOKENS["qwen2_5"]), LIMITS)
    pair = paired(chat, (Message("assistant", "", CALL), LOOKED, said("on the mat")), (said("no idea"),))
    call, answer = trained(pair.chosen, chat)
    assert '"name": "look"' in call and call.endswith("<|im_end|>") and answer == "on the mat<|im_end|>"
    (row,) = pair.chosen.rows
    assert "a cat" in chat.spell(row.ids) and "a cat" not in chat.spell(pair.chosen.token_ids)
    assert trained(pair.rejected, chat) == ["no idea<|im_end|>"]


def test_a_turn_whose_context_is_too_long_drops_its_pair() -> None:
    chat = Chat(thinker("llama3", TOKENS["llama3"]), LIMITS)
    longest = max(len(row.prompt_ids + row.ids) for row in paired(chat, CHOSEN, REJECTED).rejected.rows)
    text = TextPair(
        Prompt(ASKED), "I saw it", "bye", chosen_turns=turns_text(CHOSEN[:-1]), rejected_turns=turns_text(REJECTED[:-1])
    )
    last = len(chat.response_ids(ASKED, "bye"))
    for limit, kept in ((longest - last, 1), (longest - last - 1, 0)):
        dropped: Counter[str] = Counter()
        limits = ChatSettings(max_prompt_tokens=limit, max_response_tokens=4000)
        assert len([*tokenise_pairs([text], chat, limits, dropped=dropped)]) == kept
        assert dropped["long_prompt"] == 1 - kept


def test_pairs_that_differ_in_other_turns_alone_have_ids_of_their_own() -> None:
    chat = Chat(thinker("llama3", TOKENS["llama3"]), LIMITS)
    one = paired(chat, (said("a"), asks("b"), said("c")), (said("d"),))
    other = paired(chat, (said("a"), asks("x"), said("c")), (said("d"),))
    assert one.chosen.token_ids == other.chosen.token_ids and one.id != other.id
