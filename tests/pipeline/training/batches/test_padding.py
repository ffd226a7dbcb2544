"""Padded rows: what stands where, and what stands for values that are missing."""

from pipeline.training.batches.examples import Continuation
from pipeline.training.batches.padding import PaddedRows

PROMPTS = [(5, 6), (4,)]


def rows(*continuations: Continuation) -> PaddedRows:
    return PaddedRows(PROMPTS, continuations)


def test_ids_and_mask_stand_at_the_left() -> None:
    found = rows(Continuation((7,)), Continuation((8, 9, 10)))
    assert found.ids().tolist() == [[5, 6, 7, 0], [4, 8, 9, 10]]
    assert found.mask().int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]


def test_references_are_as_many_as_every_row_has() -> None:
    one, two = Continuation((7,), ((-1.0,),)), Continuation((8,), ((-2.0,), (-3.0,)))
    found = rows(one, two).references()
    assert found is not None
    assert found.tolist() == [[[0, 0, -1], [0, -2, 0]]]
    assert rows(one, Continuation((8,))).references() is None


def test_tokens_without_a_weight_count_one() -> None:
    found = rows(Continuation((7,), weights=(0.5,)), Continuation((8, 9))).weights()
    assert found is not None
    assert found.tolist() == [[0, 0, 0.5], [0, 1, 1]]
    assert rows(Continuation((7,)), Continuation((8,))).weights() is None


def test_a_prior_is_spread_over_the_tokens() -> None:
    found = rows(Continuation((7,)), Continuation((8, 9), prior=-3.0)).priors()
    assert found is not None
    assert found.tolist() == [[0, 0, 0], [0, -1.5, -1.5]]
    assert rows(Continuation((7,)), Continuation((8,))).priors() is None


def test_rows_without_response_tokens_hold_a_prediction_nevertheless() -> None:
    found = PaddedRows([(5,)], [Continuation(())])
    assert found.ids().tolist() == [[5, 0]]
    assert found.mask().any().item() is False
    assert rows(Continuation(()), Continuation((7,), prior=-1.0)).priors().tolist() == [[0, 0], [0, -1]]
