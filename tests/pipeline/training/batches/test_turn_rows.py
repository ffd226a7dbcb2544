"""Rows of several turns: the loss reads the trained tokens of all rows of a response, each in its own context."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.losses import Loss
from pipeline.models.token_logps import TokenLogps
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.collate import collate
from pipeline.training.batches.example_table import ExampleTable, write_examples
from pipeline.training.batches.examples import Continuation, Example, check_examples
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.batches.reference_cache import tokens_digest
from pipeline.training.gradients import Objective, accumulate_gradient
from pipeline.training.reference import reference_logps
from pipeline.types import TurnRow
from tests.support.loss_examples import full_pairs, loss_named
from tests.support.tiny_training import random_ids, tiny_llama, under_references

# Plain, without a reference, normalised by length, per token, with heads, with draws of tokens, with edits, with texts.
PRESETS = ("dpo", "simpo", "ipo", "sampo", "tdpo2", "sparsepo", "mi_dpo", "wpo", "orpo", "bmc", "sft")
Turns = tuple[tuple[int, ...], ...]


def in_one_row(prompt: tuple[int, ...], turns: Turns) -> tuple[TurnRow, ...]:
    """``turns``: the assistant's and others', one after the other."""
    ids = tuple(token for turn in turns for token in turn)
    return (TurnRow(prompt, ids, tuple(n % 2 == 0 for n, turn in enumerate(turns) for _ in turn)),)


def in_own_rows(prompt: tuple[int, ...], turns: Turns) -> tuple[TurnRow, ...]:
    """The same turns, each after all tokens before it."""
    found = []
    for n in range(0, len(turns), 2):
        before = prompt + tuple(token for turn in turns[:n] for token in turn)
        found.append(TurnRow(before, turns[n], (True,) * len(turns[n])))
    return tuple(found)


def several(count: int, *, apart: bool, whole: bool = False) -> list[Example]:
    """Pairs with all that a loss may read, of one to three turns; ``whole``: trained on other turns, too."""
    draw, make = random.Random(5), in_own_rows if apart else in_one_row
    found = []
    for example in full_pairs(count):
        sides = []
        for response in example.responses:
            turns: Turns = (response.ids,)
            for _ in range(draw.randrange(3)):
                turns = (*turns, random_ids(draw, 1, 4), random_ids(draw, 1, 5))
            rows = make(example.prompt_ids, turns)
            ids = tuple(token for turn in turns[:: 1 if whole else 2] for token in turn)
            weights = tuple(0.5 + draw.random() for _ in range(60))[: len(ids)]
            sides.append(replace(response, ids=ids, weights=weights, rows=() if whole else rows))
        found.append(replace(example, responses=tuple(sides)))
    return found


def plain(model: torch.nn.Module, row: TurnRow) -> list[float]:
    ids = row.prompt_ids + row.ids
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    at = len(row.prompt_ids)
    return [float(logps[at + n - 1, row.ids[n]]) for n, flag in enumerate(row.trained) if flag]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("apart", [True, False], ids=["own rows", "one row"])
def test_values_are_those_of_plain_transformers_on_each_row(packing: bool, apart: bool) -> None:
    model, pairs = tiny_llama(), several(6, apart=apart)
    policy = TokenLogps(model, share_prompts=packing)
    batch = collate(pairs, packing=packing)
    found = policy(batch.ids, batch.mask, batch.packed).policy.detach()
    for block in range(batch.blocks):
        for place, example in enumerate(pairs):
            number = block * len(pairs) + place
            expected = [value for row in example.responses[block].rows for value in plain(model, row)]
            assert found[number][batch.mask[number]].tolist() == pytest.approx(expected, abs=1e-5)
            ids = batch.ids[number][batch.mask[number]].tolist()
            assert tuple(ids) == example.responses[block].ids
    for example, logps in zip(pairs, reference_logps(model, pairs, 3), strict=True):
        for response, of_side in zip(example.responses, logps[:2], strict=True):
            assert list(of_side) == pytest.approx([v for row in response.rows for v in plain(model, row)], abs=1e-5)


def gradient(loss: Loss, examples: list[Example], packing: bool) -> dict[str, torch.Tensor]:
    modules = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    with torch.no_grad():
        for name, parameter in modules.named_parameters():
            if not name.startswith("critics"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    policy = TokenLogps(
        tiny_llama(), wants=loss.needs.token_facts, reference_model=tiny_llama(seed=1), share_prompts=packing
    )
    accumulate_gradient(Objective(policy, loss, modules, Accelerator()), examples, Cut(3, 200, packing))
    named = [*policy.named_parameters(), *modules.named().items()]
    return {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("name", PRESETS)
def test_a_loss_is_the_same_in_one_row_and_in_rows_of_their_own_packed_and_padded(name: str) -> None:
    loss = loss_named(name)
    models = [tiny_llama(seed=s) for s in range(1, 1 + max(1, loss.needs.references))]
    forms = {apart: under_references(several(6, apart=apart), *models) for apart in (True, False)}
    if loss.needs.only_chosen:
        forms = {
            apart: [replace(e, kind="text", responses=e.responses[:1], calibration=None) for e in pairs]
            for apart, pairs in forms.items()
        }
    (expected, *others) = [gradient(loss, pairs, packing) for pairs in forms.values() for packing in (True, False)]
    assert any(bool(value.any()) for value in expected.values())
    # float32 rounds in proportion to the gradient, which is tens for some.
    scale = max(1.0, *(float(value.abs().max()) for value in expected.values()))
    for found in others:
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value / scale, expected[key] / scale, rtol=1e-5, atol=1e-6)


def test_every_row_that_is_read_counts_in_the_tokens_of_a_padded_pass() -> None:
    pairs, most = several(12, apart=True), 200
    passes = [*micro_batches(pairs, Cut(12, most))]
    assert 1 < len(passes) < len(pairs), "some examples share a pass"
    for batch in passes:
        assert batch.packed is not None and len(batch.packed.ids) > 2 * len(batch.examples)
        assert len(batch.examples) == 1 or batch.computed <= most
    survey = check_examples(pairs, "simpo", loss_named("simpo").needs)
    assert [*survey.rows] == [len(pair.read) for pair in pairs]


def test_other_turns_are_no_part_of_the_loss() -> None:
    loss, model = loss_named("dpo"), tiny_llama(seed=1)
    masked, all_of_it = (under_references(several(6, apart=False, whole=whole), model) for whole in (False, True))
    ours, theirs = gradient(loss, masked, False), gradient(loss, all_of_it, False)
    assert any(not torch.allclose(ours[key], theirs[key], atol=1e-4) for key in ours)


def test_rows_survive_the_examples_file_and_count_in_sizes_and_in_the_cache_key(tmp_path: Path) -> None:
    for apart in (True, False):
        pairs = under_references(several(20, apart=apart), tiny_llama())
        write_examples(tmp_path / "examples.arrow", pairs)
        for one, other in zip(ExampleTable(tmp_path / "examples.arrow"), pairs, strict=True):
            assert [c.rows for c in one.continuations] == [c.rows for c in other.continuations]
            assert (one.length, one.tokens, one.distinct_tokens) == (other.length, other.tokens, other.distinct_tokens)
    rows = (
        TurnRow((1, 2), (3, 4, 5), (True, False, True)),
        TurnRow((1, 2), (6,), (True,)),
        TurnRow((7,), (8,), (True,)),
    )
    example = Example("a", (1, 2), "pair", (Continuation((3, 5, 6), rows=rows[:2]), Continuation((8,), rows=rows[2:])))
    assert (example.length, example.response_tokens) == (5, 4)
    assert (example.tokens, example.distinct_tokens) == (5 + 3 + 2, 2 + 1 + 3 + 1 + 1)
    moved = replace(example, responses=(replace(example.responses[0], rows=rows[1:]), example.responses[1]))
    assert tokens_digest([example]) != tokens_digest([moved])
    flat = Example.pair("a", (1, 2), (3, 5, 6), (8,))
    assert tokens_digest([example]) != tokens_digest([flat])
