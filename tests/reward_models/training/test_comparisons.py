"""Pairs and groups as comparisons of whole conversations."""

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.errors import UserError
from pipeline.types import Message, Prompt, TextGroup, TextPair, UnpairedText
from reward_models.local.conversations import Conversations
from reward_models.training.comparisons import compare, example, pairs_of
from tests.support.tiny_model import tiny_tokenizer

PROMPT = Prompt((Message("user", "the cat"),))
PAD = 0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def test_groups_become_all_their_pairs_the_better_first() -> None:
    found = list(pairs_of([TextGroup(PROMPT, ("a", "b", "c"), (1.0, 3.0, 1.0))]))
    assert [(p.chosen, p.rejected, p.soft_label) for p in found] == [("b", "a", 1.0), ("a", "c", 0.5), ("b", "c", 1.0)]
    assert [(p.chosen_score, p.rejected_score) for p in found] == [(3.0, 1.0), (1.0, 1.0), (3.0, 1.0)]


def test_equal_scores_are_a_tie_and_single_responses_no_pair() -> None:
    (tied,) = pairs_of([TextPair(PROMPT, "a", "b", 2.0, 2.0)])
    assert tied.soft_label == 0.5
    with pytest.raises(UserError, match="single responses"):
        list(pairs_of([UnpairedText(PROMPT, "a", True)]))


def test_what_both_rows_begin_with_is_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = TextPair(PROMPT, "sat on the mat", "sat on a barn", 0.9, 0.1, soft_label=0.8)
    (comparison,), dropped = compare([pair], Conversations(tokenizer), PAD, 100, ties=False)
    made = example(comparison)
    rows = [
        tokenizer(f"<|user|>the cat<|end|><|assistant|>{text}<|end|>")["input_ids"]
        for text in ("sat on the mat", "sat on a barn")
    ]
    assert [list(made.prompt_ids + c.ids) for c in made.responses] == rows
    assert made.responses[0].ids[0] != made.responses[1].ids[0]
    assert [c.reward for c in made.responses] == [0.9, 0.1] and made.soft_label == 0.8
    assert not any(dropped.values())


def test_each_response_keeps_a_token() -> None:
    plain = tiny_tokenizer(template=None)
    (comparison,), _ = compare([TextPair(PROMPT, "a dog ran", "a dog")], Conversations(plain), None, 100, ties=False)
    made = example(comparison)
    assert len(made.responses[1].ids) == 1 and len(made.responses[0].ids) > 1


def test_what_is_dropped_is_counted_by_cause(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [
        TextPair(PROMPT, "a", "b", soft_label=0.5),
        TextPair(PROMPT, "a", "a"),
        TextPair(PROMPT, "a", "b " * 50),
        TextPair(PROMPT, "a", "b"),
    ]
    kept, dropped = compare(pairs, Conversations(tokenizer), PAD, 40, ties=False)
    assert [c.pair for c in kept] == pairs[3:]
    assert dropped == {"tie": 1, "identical": 1, "long": 1, "unshared": 0}
    kept, dropped = compare(pairs, Conversations(tokenizer), PAD, 40, ties=True)
    assert [c.pair for c in kept] == [pairs[0], pairs[3]] and dropped["tie"] == 0
