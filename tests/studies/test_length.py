"""The study of length, small: DPO follows the length of the data, SamPO with the end token kept does not."""

import pytest

from tests.studies import length
from tests.studies.test_gpo import failed


@pytest.fixture(scope="module")
def found() -> length.Found:
    return length.every_set([0], [length.DPO, length.KEPT, length.DROPPED])


def test_the_lengths_move_as_published(found: length.Found) -> None:
    assert failed(length.claims(found)) == []
    tokens = {which: found[length.DPO][which][0][0] for which in length.SETS}
    assert tokens["longer"] > 20 and tokens["shorter"] < 5


def test_every_loss_learns_what_is_preferred(found: length.Found) -> None:
    assert all(good > 0.55 for sets in found.values() for runs in sets.values() for _, good in runs)


def test_expected_length_and_quality_are_those_of_samples() -> None:
    policy = length.start_policy()
    draw = length.torch.Generator().manual_seed(0)
    answers = length.sampled(policy, 4000, draw)
    tokens, good = length.expected(policy)
    assert float(answers.lengths().double().mean()) == pytest.approx(tokens, rel=0.05)
    assert (tokens, good) == (pytest.approx(10 * (1 - 0.9**60)), pytest.approx(0.5))


def test_the_production_trainer_moves_length_the_same_way() -> None:
    assert length.by_trainer(length.DPO, 0, "longer", epochs=10) > 1.3 * length.expected(length.start_policy())[0]
