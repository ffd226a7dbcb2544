"""The arithmetic of ``plan --cards`` against real training steps, and the bars that users count on."""

from typing import Any

import pytest
from transformers import AutoConfig

from flows.planning.cards.fitting import GB, Card, parse_cards, training_parts, whole_of
from flows.planning.cards.recipes import RECIPES, PartCounts, Recipe
from flows.planning.cards.survey import USUAL_LORA
from flows.planning.cards.traced import PassShape, counted_parts, traced_activations
from pipeline.config import Lora
from pipeline.errors import UserError
from tests.support.places import ROOT
from tests.support.training_bytes import measured_step, small_llama

LORA = Lora(rank=8)
WIDE, TALL = small_llama(128, 384, 600, 3), small_llama(64, 256, 2000, 2)
ADAPTER = Recipe("LoRA", "bfloat16", adapter=True)
FULL = Recipe("full", "float32")
PACKED, PADDED = PassShape(6, 60, 44), PassShape(6, 60, 44, packed=False)
SHAPES = ROOT / "tests/fixtures/shapes"


def recomputing(shape: PassShape) -> PassShape:
    return PassShape(shape.trees, shape.prompt, shape.response, shape.responses, shape.packed, checkpointing=True)


def shape_of(name: str) -> Any:
    return AutoConfig.from_pretrained(SHAPES / name)


SLOW = pytest.mark.whole


@pytest.mark.parametrize(
    ("model", "recipe", "pass_"),
    [
        (WIDE, ADAPTER, PACKED),
        (WIDE, FULL, recomputing(PACKED)),
        (TALL, ADAPTER, recomputing(PADDED)),
        (TALL, FULL, PADDED),
        pytest.param(WIDE, ADAPTER, recomputing(PACKED), marks=SLOW),
        pytest.param(WIDE, FULL, PACKED, marks=SLOW),
        pytest.param(WIDE, FULL, recomputing(PADDED), marks=SLOW),
        pytest.param(TALL, FULL, recomputing(PACKED), marks=SLOW),
        pytest.param(TALL, Recipe("LoRA", "float32", adapter=True, matmul="float32"), PADDED, marks=SLOW),
        pytest.param(WIDE, Recipe("full", "float32", matmul="float32"), PACKED, marks=SLOW),
        pytest.param(WIDE, Recipe("full", "float32", optimiser="adamw_8bit"), PACKED, marks=SLOW),
        pytest.param(WIDE, Recipe("full", "bfloat16"), PACKED, marks=SLOW),
        pytest.param(
            small_llama(64, 128, 8000, 2), Recipe("full", "bfloat16"), recomputing(PassShape(1, 8, 8)), marks=SLOW
        ),
        pytest.param(small_llama(192, 320, 600, 14), FULL, recomputing(PACKED), marks=SLOW),
    ],
)
def test_a_plan_is_what_a_step_of_the_trainer_holds(model: Any, recipe: Recipe, pass_: PassShape) -> None:
    counts = counted_parts(model, LORA if recipe.adapter else None)
    held = measured_step(model, recipe, LORA, pass_)
    assert recipe.weight_bytes(counts) == pytest.approx(held.weights, rel=0.05)
    assert recipe.gradient_bytes(counts) == pytest.approx(held.gradients, rel=0.05)
    assert recipe.optimiser_bytes(counts) == pytest.approx(held.optimiser, rel=0.05)
    activations = traced_activations(model, recipe, LORA, pass_, blocks=True)
    assert max(activations, recipe.step_bytes(counts)) == pytest.approx(held.activations, rel=0.15)


def test_parameters_are_counted_from_a_config_alone() -> None:
    counts = counted_parts(shape_of("llama_8b"), USUAL_LORA)
    # Meta's model card of Llama 3.1 8B: 8.03 billion. Rank 16 on all linear layers: peft prints 41,943,040.
    assert counts.base == 8_030_261_248 and counts.adapter == 41_943_040
    assert counts.head == 128256 * 4096 and counts.rest == 128256 * 4096 + 65 * 4096
    assert counted_parts(shape_of("llama_70b"), None).base == 70_553_706_496


def test_shared_embeddings_count_once() -> None:
    tied = small_llama(64, 256, 2000, 2)
    tied.tie_word_embeddings = True
    counts, apart = counted_parts(tied, None), counted_parts(small_llama(64, 256, 2000, 2), None)
    assert counts.head == 0 and counts.base == apart.base - 2000 * 64


@pytest.mark.parametrize(
    ("recipe", "length", "most"),
    [(RECIPES[0], 2048, 20), (RECIPES[2], 1024, 24), (Recipe("full", "float32", optimiser="adamw_8bit"), 2048, 141)],
    ids=["QLoRA", "LoRA", "full"],
)
def test_an_8b_fits_where_it_must(recipe: Recipe, length: int, most: int) -> None:
    pair = PassShape(1, length // 2, length // 2, packed=False, checkpointing=True)
    shape = shape_of("llama_8b")
    activations = traced_activations(shape, recipe, USUAL_LORA, pair)
    counts = counted_parts(shape, USUAL_LORA if recipe.adapter else None)
    assert whole_of(training_parts(recipe, counts, activations, Card(most * GB))) <= most * GB


def test_quantised_weights_have_the_bytes_of_their_blocks() -> None:
    counts = PartCounts(linear=64 * 256 * 100, head=0, rest=0, rows=1000)
    # 4 bits, one byte a block of 64, four bytes a block of 256 of these.
    assert Recipe("", "bfloat16", bits=4, adapter=True).weight_bytes(counts) == 100 * (64 * 256 // 2 + 256 + 4)
    assert Recipe("", "bfloat16", bits=4, double=False, adapter=True).weight_bytes(counts) == 100 * 256 * (32 + 4)
    assert Recipe("", "bfloat16", bits=8, adapter=True).weight_bytes(counts) == counts.linear + 4000


def test_cards_are_read_as_people_write_them() -> None:
    assert parse_cards("24, 8x80,141GB") == (Card(24 * GB), Card(80 * GB, 8), Card(141 * GB))
    for wrong in ("", "many", "0x80", "24,,80", "-3"):
        with pytest.raises(UserError, match=r"--cards: .*: must be GB, such as 24, or COUNTxGB"):
            parse_cards(wrong)


def test_several_cards_share_whole_weights_and_hold_quantised_ones_each() -> None:
    counts = PartCounts(linear=800, head=0, rest=0, adapter=80, largest=10, layer=100, rows=1)
    one, eight = (training_parts(ADAPTER, counts, 0, Card(1, n)) for n in (1, 8))
    assert eight["weights"] == one["weights"] / 8 and eight["16-bit copies"] == 2 * 100 * 2
    quantised = Recipe("", "bfloat16", adapter=True, bits=4)
    assert training_parts(quantised, counts, 0, Card(1, 8)) == training_parts(quantised, counts, 0, Card(1))
