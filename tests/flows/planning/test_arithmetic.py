import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from flows.planning import measure as plan_processes
from flows.planning.arithmetic import ParameterCounts, Round, TrainerMemory, carried_on, seconds
from flows.planning.counts import of_length, stand_in
from flows.planning.disk import DiskUse, disk_use
from flows.planning.machine import free_memory
from flows.planning.measure import apart, of_several
from flows.planning.probe import Measured, Probed, few_examples, train_a_little, with_layers
from pipeline.config import Lora, Optimisation
from pipeline.losses import load_preset

DPO = load_preset("dpo")
VOCABULARY, HIDDEN, INNER, LAYERS = 512, 128, 256, 6
COUNTS = Round(
    prompts=10,
    responses=4,
    prompt_tokens=20.0,
    response_tokens=30.0,
    examples=10,
    continuations=2,
    example_prompt_tokens=20.0,
    example_response_tokens=30.0,
    held_out=5,
    held_out_responses=2,
    references=1,
    epochs=2.0,
)


def llama(tied: bool = False, **more: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        **more,
    )


def layer_parameters() -> int:
    return 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN


@pytest.mark.parametrize(("tied", "tables"), [(False, 2), (True, 1)])
def test_parameters_are_counted_without_weights_and_tied_ones_once(tied: bool, tables: int) -> None:
    counted = Probed(llama(tied), DPO).parameters(LAYERS)
    expected = LAYERS * layer_parameters() + HIDDEN + tables * VOCABULARY * HIDDEN
    assert counted == ParameterCounts(expected, expected, 0)


def test_an_adapter_alone_is_trained() -> None:
    plain = Probed(llama(), DPO).parameters(LAYERS)
    counted = Probed(llama(), DPO, Lora(rank=4)).parameters(LAYERS)
    # A matrix of [out, in] gets 4 · (out + in): four square ones and three of the feed-forward part in a layer.
    adapter = LAYERS * 4 * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER))
    assert counted == ParameterCounts(plain.total + adapter, adapter, 0)


def test_what_a_loss_trains_beside_the_policy_counts() -> None:
    beside = Probed(llama(), load_preset("hpo")).parameters(LAYERS).beside
    assert beside == HIDDEN + 1


def test_a_config_keeps_its_first_layers_and_what_is_said_of_them() -> None:
    fewer = with_layers(llama(layer_types=["full_attention"] * LAYERS), 2)
    assert fewer.num_hidden_layers == 2 and fewer.layer_types == ["full_attention"] * 2


def test_memory_of_training_adds_up() -> None:
    memory = TrainerMemory(ParameterCounts(100, 10, 5), activations=7, reference_beside=True)
    assert memory.parts == {"weights": 4 * 205, "gradients": 60, "optimiser": 120, "activations": 7}
    assert memory.total == 820 + 187 and memory.above_model == 1007 - 400


def test_tokens_of_a_round_by_kind_of_work() -> None:
    assert COUNTS.tokens() == {
        "sampling": 10 * 4 * 30 + 5 * 2 * 30,
        "labelling": (10 * 4 + 5 * 2) * 50,
        "scoring": 10 * (20 + 2 * 30) + 3 * 5 * 2 * 50,
        "training": 2 * 10 * (20 + 2 * 30),
    }


def test_rates_that_are_not_known_give_no_seconds_but_scoring_follows_training() -> None:
    tokens = {"sampling": 100.0, "labelling": 50.0, "scoring": 60.0, "training": 40.0}
    assert seconds(tokens, {"training": 10.0}) == {"sampling": None, "labelling": None, "scoring": 2.0, "training": 4.0}
    assert seconds(tokens, {"scoring": 5.0})["scoring"] == 12.0
    assert seconds({"sampling": 0.0}, {}) == {"sampling": 0.0}


def test_disk_holds_two_numbers_a_token_where_advantages_are_stored() -> None:
    def use(**settings: bool) -> DiskUse:
        given = {"made_start": False, "carried": False, "averaged": False, "checkpoints": False, "best": False}
        return disk_use(COUNTS, ParameterCounts(1000, 1000), iterative=True, **given, **settings)

    with_them, without = use(advantages=True), use()
    assert with_them.round == {**without.round, "advantages": 2 * 10 * 2 * 30 * 4 + 10 * 64}
    assert with_them.passing["examples"] - without.passing["examples"] == 2 * 10 * 2 * 30 * 4


def test_disk_holds_what_the_run_keeps_and_the_checkpoints_of_one_training() -> None:
    used = disk_use(
        COUNTS,
        ParameterCounts(1000, 1000),
        made_start=True,
        carried=True,
        averaged=True,
        checkpoints=True,
        best=True,
        iterative=True,
    )
    assert used.start["policy"] == 4000
    assert {name: used.round[name] for name in ("policy", "optimiser", "average", "reference")} == {
        "policy": 4000,
        "optimiser": 8000,
        "average": 4000,
        # A float32 a response token, and the row's id.
        "reference": 10 * 2 * 30 * 4 + 10 * 64,
    }
    # Of an example its prompt, and two responses with the log-probabilities of one reference: 4 bytes each.
    # The best weights and those that the checkpoint counts on, with the state that the next round carries on.
    assert used.passing == {"best weights": 24_000, "checkpoints": 24_000, "examples": 10 * (20 * 4 + 2 * 30 * 8)}
    assert used.round["reference cache"] == used.round["reference"] and "advantages" not in used.round
    more = sum(used.round.values())
    assert used.whole(3) - used.whole(2) == more


def test_disk_is_what_a_round_of_the_quickstart_wrote() -> None:
    # 2,000 prompts x 4 responses of 183,688 tokens together; best against worst.
    counts = Round(2000, 4, 40.0, 22.96, 2000, 2, 40.0, 22.96, 200, 2, 1, 1.0)
    used = disk_use(
        counts,
        ParameterCounts(1, 1),
        made_start=True,
        carried=False,
        averaged=False,
        checkpoints=False,
        best=False,
        iterative=True,
    ).round
    written = {"samples": 1_476_213, "labels": 1_490_423, "pairs": 880_557, "reference": 539_923}
    assert {name: used[name] / size for name, size in written.items()} == pytest.approx(
        dict.fromkeys(written, 1), abs=0.1
    )


def test_an_adapter_is_saved_merged() -> None:
    used = disk_use(
        COUNTS,
        ParameterCounts(1100, 100),
        made_start=False,
        carried=False,
        averaged=False,
        checkpoints=False,
        best=True,
        iterative=False,
    )
    assert used.round["policy"] == 4000 and "samples" not in used.round and "policy" not in used.start
    assert used.passing["best weights"] == 100 * 4


def test_a_measurement_trains_on_the_largest_pass_first() -> None:
    lengths = [10, 200, 12, 180, 14, 16]
    examples = [
        stand_in(str(i), "pair", of_length(i, n, 500), [of_length(i, 20, 500), of_length(i + 1, 20, 500)], DPO, 500)
        for i, n in enumerate(lengths)
    ]
    few, size = few_examples(examples, Optimisation(batch_size=6, micro_batch_tokens=500), seed=0)
    # 240 + 220 positions fill the first pass; the other four go into the second.
    assert [len(e.prompt_ids) for e in few[:2]] == [200, 180] and size == 6
    assert sorted(e.id for e in few) == sorted(e.id for e in examples)


def steadily(*of: Any) -> Measured:
    """``train_a_little`` with an allocator that gives all back at once: what is held, not how room is found for it."""
    mmap_threshold = -3
    assert ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 17) == 1
    return train_a_little(*of)


@pytest.mark.whole
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_few_layers_tell_of_all() -> None:
    # Wide streams, so that what layers keep is more than what a process takes for itself.
    examples = [
        stand_in(str(i), "pair", of_length(i, 256, 500), [of_length(2 * i + k, 128, 500) for k in range(2)], DPO, 500)
        for i in range(16)
    ]
    probed = Probed(llama(), DPO)
    settings = Optimisation(batch_size=8, micro_batch_tokens=8192)
    few, size = few_examples(examples, settings, seed=0)
    found = {n: apart(steadily, probed, few, size, settings, n).beyond for n in (1, 3, LAYERS)}
    carried = carried_on((1, 3), (found[1], found[3]), LAYERS)
    assert carried / found[LAYERS] == pytest.approx(1, abs=0.02)
    assert found[LAYERS] > 2 * found[1]


def measured(names: Iterator[int]) -> Measured:
    return Measured(beyond := next(names), 10.0 / beyond)


def test_the_worst_of_several_measurements_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_processes, "apart", lambda work, *of: work(*of))
    assert of_several(measured, iter([4, 5, 2])) == Measured(5, 5.0)


def test_free_memory_is_that_of_the_control_group(tmp_path: Path) -> None:
    machine = free_memory(tmp_path)
    (tmp_path / "memory.current").write_text("1000")
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_memory(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.2)
