"""Who gets which cards or cores: real forms of CUDA_VISIBLE_DEVICES, and what is refused."""

from typing import Any

import pytest

from flows.workers.local import stays_warm
from flows.workers.pool.cards import Machine, chosen_cards, count_cards, visible_cards
from flows.workers.pool.seating import Seat, require_whole_cards, seating_of
from pipeline.config import RunConfig
from pipeline.errors import UserError
from tests.support.tiny_run import CONFIG

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
    ("wanted", "said"),
    [("4,5", r"gpu_ids: 4,5: 4, 5; .*\(4,5,6\): 0 to 2"), ("1,1", "an entry twice"), ("GPU-9", "GPU-9; allowed")],
)
def test_gpu_ids_beyond_the_visible_cards_are_refused(wanted: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chosen_cards(wanted, ("4", "5", "6"), "gpu_ids")


def run(sampler: dict[str, Any], **settings: Any) -> RunConfig:
    return RunConfig.model_validate({**CONFIG, "sampler": sampler, **settings})
