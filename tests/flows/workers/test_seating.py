"""Who gets which cards or cores: real forms of CUDA_VISIBLE_DEVICES, and what is refused."""

from typing import Any

import pytest

from flows.workers.local import stays_warm
from flows.workers.pool import cards
from flows.workers.pool.cards import Machine, cards_of_launch, chosen_cards, count_cards, visible_cards
from flows.workers.pool.seating import Seat, require_whole_cards, seating_of
from pipeline.config import RunConfig
from pipeline.errors import UserError

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
SLICES = ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0", "MIG-b2c1d2e3-41f2-5a77-9e10-0a8b6c1d2e3f")
EIGHT = Machine(tuple("01234567"), tuple(range(64)))


@pytest.mark.parametrize(
    ("value", "present", "cards"),
    [
        (None, 3, ("0", "1", "2")),
        (None, 0, ()),
        ("4,5,6,7", 8, ("4", "5", "6", "7")),
        ("2, 0", 4, ("2", "0")),
        ("", 4, ()),
        ("NoDevFiles", 4, ()),
        ("-1", 4, ()),
        ("1,-1,2", 4, ("1",)),
        ("0,0", 4, ()),
        (f"{UUID},GPU-1f", 4, (UUID, "GPU-1f")),
        (",".join(SLICES), 1, SLICES),
    ],
)
def test_visible_cards_are_those_that_cuda_shows(value: str | None, present: int, cards: tuple[str, ...]) -> None:
    assert visible_cards(value, present) == cards


def test_cards_are_counted_by_their_device_files(tmp_path: Any) -> None:
    assert count_cards(tmp_path) is None
    for name in ("nvidiactl", "nvidia-uvm", "nvidia3", "nvidia7"):
        (tmp_path / name).touch()
    assert count_cards(tmp_path) == 2


@pytest.mark.parametrize(
    ("wanted", "visible", "cards"),
    [
        ("all", ("4", "5"), ("4", "5")),
        ("0,1", ("4", "5", "6"), ("4", "5")),
        ("1", (UUID, "GPU-1f"), ("GPU-1f",)),
        ("GPU-8932", (UUID, "GPU-1f"), (UUID,)),
    ],
)
def test_gpu_ids_are_positions_among_the_visible_cards(
    wanted: str, visible: tuple[str, ...], cards: tuple[str, ...]
) -> None:
    assert chosen_cards(wanted, visible, "gpu_ids") == cards


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [("all", "4,5", None), ("0,1", None, "0,1"), ("1,2", "4,5,6", "5,6"), ("0", "GPU-a1, GPU-b2", "GPU-a1")],
)
def test_training_gets_the_cards_that_gpu_ids_counts_among_those_that_slurm_leaves(
    wanted: str, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert cards_of_launch(wanted, environment) is None
    monkeypatch.setattr(cards, "count_cards", lambda: 8)
    assert cards_of_launch(wanted, environment) == expected


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("4,5", r"gpu_ids: 4,5: 4, 5; .*\(4,5,6\): 0 to 2"), ("1,1", "an entry twice"), ("GPU-9", "GPU-9; allowed")],
)
def test_gpu_ids_beyond_the_visible_cards_are_refused(wanted: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chosen_cards(wanted, ("4", "5", "6"), "gpu_ids")


def run(sampler: dict[str, Any], **settings: Any) -> RunConfig:
    plain = {
        "name": "t",
        "mode": "iterative",
        "policy": {"path": "model"},
        "prompts": {"kind": "restaurants"},
        "scorer": {"kind": "slots"},
    }
    return RunConfig.model_validate({**plain, "sampler": sampler, **settings})


def cards_of(config: RunConfig, machine: Machine) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    seating = seating_of(config, machine)
    return [seat.cards for seat in seating.engines], seating.rest.cards


def test_engines_take_turns_with_the_trainer_or_have_cards_of_their_own() -> None:
    everything = tuple("01234567")
    assert cards_of(run({}), EIGHT) == ([(card,) for card in everything], everything)
    two = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert cards_of(run(two), EIGHT) == ([tuple("0123"), tuple("4567")], everything)
    assert cards_of(run({"engines": 1, **two}), EIGHT) == ([tuple("0123")], everything)
    assert cards_of(run({"engines": 3, "tensor_parallel_size": 2}, placement="split"), EIGHT) == (
        [("0", "1"), ("2", "3"), ("4", "5")],
        ("6", "7"),
    )
    # A trainer of one process needs one card.
    assert cards_of(run({}, placement="split"), EIGHT) == ([(card,) for card in "0123456"], ("7",))


def test_split_engines_leave_the_trainer_what_its_processes_need(tmp_path: Any) -> None:
    launch = tmp_path / "ddp.yaml"
    launch.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    config = run({"tensor_parallel_size": 2}, placement="split", accelerate=str(launch))
    assert cards_of(config, EIGHT) == ([("0", "1"), ("2", "3")], tuple("4567"))
    assert stays_warm(config)


def test_cores_are_shared_where_there_are_no_cards() -> None:
    machine = Machine((), (0, 1, 2, 3, 4))
    assert [seat.cores for seat in seating_of(run({}), machine).engines] == [(0, 1, 2, 3, 4)]
    assert [seat.cores for seat in seating_of(run({"engines": 2}), machine).engines] == [(0, 1, 2), (3, 4)]
    split = seating_of(run({"engines": 2}, placement="split"), machine)
    assert [seat.cores for seat in split.engines] == [(0, 1), (2, 3)] and split.rest.cores == (4,)


def test_a_seat_is_kept_by_its_variables() -> None:
    seating = seating_of(run({"engines": 2, "tensor_parallel_size": 2}), Machine((UUID, *"123"), (0,)))
    assert [seat.environment({}) for seat in seating.engines] == [
        {"CUDA_VISIBLE_DEVICES": f"{UUID},1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert seating.rest.environment({}) == {}
    lone = seating_of(run({"engines": 1}), Machine(("5",), (0, 1)))
    assert lone.engines[0].environment({"CUDA_VISIBLE_DEVICES": "5"}) == {}
    ranks = seating_of(run({"tensor_parallel_size": 2}), Machine((), (0, 1, 2, 3))).engines[0]
    assert ranks.environment({}) == {"VLLM_CPU_OMP_THREADS_BIND": "0,1|2,3", "OMP_NUM_THREADS": "2"}
    assert ranks.environment({"VLLM_CPU_OMP_THREADS_BIND": "2|3"}) == {}
    two = seating_of(run({"engines": 2}), Machine((), (0, 1))).engines
    assert two[1].environment({}) == {"VLLM_CPU_OMP_THREADS_BIND": "1", "OMP_NUM_THREADS": "1"}
    assert seating_of(run({}), Machine((), (0, 1))).engines[0].environment({}) == {}


@pytest.mark.parametrize(
    ("sampler", "settings", "machine", "said"),
    [
        ({"engines": 9}, {}, EIGHT, r"9 engines need 9 cards, .* sees 8 cards; allowed: 1 to 8, or auto"),
        ({"engines": 3}, {}, Machine((), (0, 1)), r"3 engines need 3 cores, .* sees 2 cores; allowed: 1 to 2, or auto"),
        (
            {"engines": 4, "tensor_parallel_size": 2},
            {"placement": "split"},
            EIGHT,
            r"4 engines of 2 cards each .* need 8 cards, .* 8 cards, 1 of them for the trainer .*; allowed: 1 to 3",
        ),
        ({"tensor_parallel_size": 16}, {}, EIGHT, r"an engine needs 16 cards .*; allowed: .* of at most 8"),
        ({"tensor_parallel_size": 4}, {}, Machine((), (0, 1)), r"needs 4 cores \(.*\), .* of at most 2"),
        ({}, {"placement": "split"}, Machine(("0",), (0,)), r"for the trainer .* allowed: placement: colocated"),
    ],
)
def test_too_few_cards_or_cores_are_refused(
    sampler: dict[str, Any], settings: dict[str, Any], machine: Machine, said: str
) -> None:
    with pytest.raises(UserError, match=f"^sampler.engines: .*{said}"):
        seating_of(run(sampler, **settings), machine)


def test_stages_of_an_engine_need_cards() -> None:
    sampler = {"pipeline_parallel_size": 2}
    with pytest.raises(UserError, match=r"^sampler\.pipeline_parallel_size: 2, but there is no card.*; allowed .* 1,"):
        seating_of(run(sampler), Machine((), (0, 1)))
    assert seating_of(run(sampler), Machine(("0", "1"), (0, 1))).engines[0].ranks == 2


@pytest.mark.parametrize(
    ("sampler", "settings", "said"),
    [
        ({"engines": 0}, {}, "engines"),
        ({"tensor_parallel_size": 0}, {}, "tensor_parallel_size"),
        ({"kind": "server", "base_url": "http://127.0.0.1:1/v1", "engines": 2}, {}, "engines: 2: with base_url"),
        ({"kind": "server", "base_url": "http://127.0.0.1:1/v1", "tensor_parallel_size": 2}, {}, "allowed: 1"),
        ({"keep_warm": "never"}, {"placement": "split"}, "split engines stay"),
    ],
)
def test_values_that_mean_nothing_are_refused(sampler: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(sampler, **settings)


def test_parts_of_cards_make_engines_but_no_larger_ones() -> None:
    machine = Machine(SLICES, (0,))
    require_whole_cards(seating_of(run({}), machine))
    with pytest.raises(UserError, match="at most one MIG device"):
        require_whole_cards(seating_of(run({"tensor_parallel_size": 2}), machine))


def test_the_plan_says_who_is_where() -> None:
    seating = seating_of(run({"engines": 2}, placement="split"), Machine(tuple("0123"), (0,)))
    assert seating.lines(stay=True) == [
        "placement split: 2 engines (engine 0: card 0; engine 1: card 1) stay while training runs; "
        "trainer and labellers: cards 2,3"
    ]
    assert Seat("engine", cores=(0, 1)).where == "cores 0,1"
