"""Packed streams: each row's log-probabilities are those that it has alone."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.errors import RunError
from pipeline.models import token_logps as logps
from pipeline.models.attention.blocks import layout
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.shared_prompts import stream_arguments
from pipeline.models.token_logps import TokenLogps
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.reference import response_logps
from pipeline.training.watch import self_test as first_step
from pipeline.training.watch.self_test import check_packing
from tests.support.tiny_training import pairs_with_reference, random_ids, random_pairs, tiny_llama

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
SHARING: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "grouped queries": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=4)),
}
PADDED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "alibi": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4)),
        "BloomForCausalLM: attention is biased by the distance of places in the pass (ALiBi)",
    ),
}


def rows(seed: int = 0) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Three prompts with one to four continuations, shuffled, one of them twice."""
    draw = random.Random(seed)
    found = [
        (prompt, random_ids(draw, 1, 9))
        for prompt in (random_ids(draw, 1, 12) for _ in range(3))
        for _ in range(draw.randint(1, 4))
    ]
    found.append(found[0])
    draw.shuffle(found)
    return found


def test_prompts_and_equal_rows_are_there_once() -> None:
    packed = pack([((5, 6), (7, 8)), ((9,), (7,)), ((5, 6), (3,)), ((5, 6), (7, 8))])
    assert packed.ids.tolist() == [5, 6, 7, 8, 3, 9, 7]
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert packed.branch.tolist() == [0, 0, 1, 1, 2, 0, 1]
    assert packed.lengths.tolist() == [5, 2]
    # Row by row: the prompt's end, then neighbours.
    assert packed.predictors.tolist() == [1, 2, 5, 1, 1, 2]


def test_a_row_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="without prompt tokens"):
        pack([((), (3,))])


def test_blocks_hold_every_token_once_and_nobody_sees_a_sibling() -> None:
    packed = pack([((1, 2), (3, 4)), ((1, 2), (5,)), ((6,), (7,)), (tuple(range(9)), (3,))])
    found = layout(packed)
    assert [tuple(block.index.shape) for block in found.blocks] == [(1, 10), (1, 5), (1, 2)]
    where = torch.cat([block.index.flatten()[block.valid] for block in found.blocks])
    assert sorted(where.tolist()) == list(range(len(packed.ids)))
    assert where[found.order].tolist() == list(range(len(packed.ids)))
    shared = found.blocks[1].mask[0, 0].int().tolist()
    assert shared == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("kind", SHARING)
def test_log_probabilities_are_those_of_each_row_alone(kind: str) -> None:
    torch.manual_seed(0)
    model = SHARING[kind]().eval()
    sequences = rows()
    expected = []
    for prompt, ids in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        expected.append([float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)])
    assert TokenLogps(model, share_prompts=True).padded_because is None
    found = response_logps(model, sequences)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("kind", PADDED)
def test_models_that_cannot_share_say_why_and_are_padded(kind: str) -> None:
    torch.manual_seed(0)
    make, reason = PADDED[kind]
    model = make().eval()
    before = model.config._attn_implementation
    scored = TokenLogps(model, share_prompts=True)
    assert scored.padded_because is not None and reason in scored.padded_because
    assert model.config._attn_implementation == before
    prompt, ids = (3, 4, 5), (6, 7, 8, 9)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    expected = [float(logits[2 + t, token]) for t, token in enumerate(ids)]
    assert response_logps(model, [(prompt, ids), ((3,), (4,))])[0] == pytest.approx(expected, abs=2e-5)


def test_a_model_that_shares_still_attends_to_padded_rows_with_masks_as_before() -> None:
    model = tiny_llama()
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    expected = model(ids, attention_mask=mask).logits[mask.bool()]
    TokenLogps(model, share_prompts=True)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], expected)


def sees_siblings(packed: Packed, asked: object = None) -> dict[str, object]:
    """A planted error: all continuations count as one."""
    return stream_arguments(replace(packed, branch=packed.branch.clamp(max=1)))


def test_a_response_that_sees_its_sibling_is_caught_at_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    pairs = pairs_with_reference(model, 6)
    policy, cut = TokenLogps(model, share_prompts=True), Cut(6, packing=True)
    assert check_packing(policy, pairs, cut, Accelerator(), "float32") < 1e-5
    monkeypatch.setattr(logps, "stream_arguments", sees_siblings)
    with pytest.raises(RunError, match=r"packed and padded rows differ by .*; set training\.packing to false"):
        first_step.check_packing(policy, pairs, cut, Accelerator(), "float32")


def test_passes_hold_at_most_the_tokens_that_are_asked_for_and_the_longest_comes_first() -> None:
    pairs = random_pairs(9)
    sizes = [len(e.prompt_ids) + e.response_tokens for e in pairs]
    batches = list(micro_batches(pairs, Cut(9, 40, packing=True)))
    assert len(batches) > 2
    assert all(batch.computed <= 40 for batch in batches)
    assert sorted(e.id for batch in batches for e in batch.examples) == sorted(e.id for e in pairs)
    assert sum(batch.computed for batch in batches) == sum(sizes)
    largest = [max(e.distinct_tokens for e in batch.examples) for batch in batches]
    assert largest == sorted(largest, reverse=True)
    assert [len(b.examples) for b in micro_batches(pairs, Cut(9, 1, packing=True))] == [1] * 9


def test_of_groups_those_with_the_most_tokens_come_first_when_packed() -> None:
    draw = random.Random(3)
    many = Example.group("many", random_ids(draw, 3, 3), [random_ids(draw, 6, 6) for _ in range(8)], [0.0] * 8)
    long = Example.group("long", random_ids(draw, 20, 20), [random_ids(draw, 2, 2) for _ in range(8)], [0.0] * 8)
    for packing, first in ((True, "many"), (False, "long")):
        (pass_, *_) = micro_batches([long, many], Cut(1, packing=packing))
        assert [e.id for e in pass_.examples] == [first]


def test_passes_are_filled_with_what_still_fits() -> None:
    draw = random.Random(5)
    lengths = (60, 50, 40, 35, 5, 4)
    texts = [
        Example.text(f"{length}", random_ids(draw, 1, 1), random_ids(draw, length - 1, length - 1))
        for length in lengths
    ]
    found = [[e.id for e in batch.examples] for batch in micro_batches(texts, Cut(9, 100, packing=True))]
    # Each goes to the last pass with room, the nearest in length: 40 behind 50, and 35, too long for that, behind 60.
    assert found == [["60", "35"], ["50", "40", "5", "4"]]
    assert [len(b.examples) for b in micro_batches(texts, Cut(2, 100, packing=True))] == [2, 2, 2]


def test_filling_up_computes_nothing() -> None:
    pairs = random_pairs(2)
    assert collate(pairs, 5, packing=True).computed == collate(pairs, packing=True).computed
