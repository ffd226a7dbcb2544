"""Whether a cluster holds a run, told before anything waits for a place."""

import pytest

from flows.workers.machines.cluster.shares import Share, require_capacity
from pipeline.errors import UserError

ENGINES = Share("engine", 2, 4, 2)
TRAINERS = Share("training process", 4, 1, 1)


def machines(*given: tuple[float, float]) -> list[dict[str, float]]:
    return [{"CPU": cores, "GPU": cards} for cores, cards in given]


def test_shares_are_said_in_words() -> None:
    assert ENGINES.text == "2 engines of 4 cores and 2 cards"
    assert Share("training process", 1, 1).text == "1 training process of 1 core"
    assert Share("training process", 2, 1).text == "2 training processes of 1 core"
    assert ENGINES.bundle == {"CPU": 4.0, "GPU": 2.0}
    assert Share("engine", 1, 3).bundle == {"CPU": 3.0}


@pytest.mark.parametrize(
    "there",
    [
        machines((16, 8)),
        # Each engine would leave too little of its own machine.
        machines((8, 4), (4, 4)),
        # The engines fill the first and the third machine, and leave single cards to single processes.
        machines((4, 2), (1, 1), (5, 3), (2, 2)),
    ],
)
def test_what_fits_is_let_through(there: list[dict[str, float]]) -> None:
    require_capacity([ENGINES, TRAINERS], there, "head:1")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (machines((16, 1), (16, 1), (16, 1), (16, 1)), "one engine of 4 cores and 2 cards"),
        (machines((3, 8), (3, 8)), "one engine of 4 cores and 2 cards"),
        (machines((8, 4), (2, 2)), "one training process of 1 core and 1 card"),
        ([], "one engine of 4 cores and 2 cards"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_is_needed_and_what_is_there(
    there: list[dict[str, float]], wanted: str
) -> None:
    with pytest.raises(UserError) as error:
        require_capacity([ENGINES, TRAINERS], there, "head:1")
    lines = str(error.value).splitlines()
    assert lines[0] == f"cluster: head:1 cannot hold this run: no machine is left for {wanted}"
    assert "2 engines of 4 cores and 2 cards; 4 training processes of 1 core and 1 card" in lines[1]
    assert len(lines) == 4


def test_a_machine_is_filled_once() -> None:
    one = [{"CPU": 2.0}]
    require_capacity([Share("engine", 2, 1)], one, "head:1")
    require_capacity([Share("engine", 2, 1)], one, "head:1")
    with pytest.raises(UserError, match="machines: 2 cores"):
        require_capacity([Share("engine", 2, 1), Share("training process", 1, 1)], one, "head:1")
