"""Log-probabilities under models that are not trained."""

import pytest
import torch
from tiny_training import random_pairs, random_texts, tiny_llama

from pipeline.reference import kl_per_token, reference_logps, response_logps, with_reference


def plain(model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(response)]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_values_come_in_the_order_of_the_examples(batch_size: int) -> None:
    model, pairs = tiny_llama(), random_pairs(9)
    for example, (chosen, rejected) in zip(pairs, reference_logps(model, pairs, batch_size), strict=True):
        assert list(chosen) == pytest.approx(plain(model, example.prompt_ids, example.chosen_ids), abs=1e-5)
        assert rejected is not None
        assert list(rejected) == pytest.approx(plain(model, example.prompt_ids, example.rejected_ids or ()), abs=1e-5)


def test_single_texts_have_no_rejected_side() -> None:
    assert {rejected for _, rejected in reference_logps(tiny_llama(), random_texts(3))} == {None}


def test_dropout_is_off_and_the_mode_is_given_back() -> None:
    model, pairs = tiny_llama(dropout=0.5).train(), random_pairs(2)
    assert reference_logps(model, pairs) == reference_logps(model, pairs) == reference_logps(tiny_llama(), pairs)
    assert model.training


def test_an_empty_response_has_no_values() -> None:
    sequences = [((3, 4), ()), ((5,), (6, 7))]
    found = response_logps(tiny_llama(), sequences)
    assert [len(values) for values in found] == [0, 2]


def test_progress_counts_responses() -> None:
    seen: list[int] = []
    reference_logps(tiny_llama(), random_pairs(5), batch_size=4, on_progress=seen.append)
    assert seen == [4, 8, 10]


def test_with_reference_fills_both_sides() -> None:
    pairs = random_pairs(2)
    filled = with_reference(pairs, [((-1.0,), (-2.0,)), ((-3.0,), (-4.0,))])
    assert [(e.id, e.reference_chosen, e.reference_rejected) for e in filled] == [
        ("pair0", (-1.0,), (-2.0,)),
        ("pair1", (-3.0,), (-4.0,)),
    ]


def test_kl_is_the_mean_log_ratio_per_token() -> None:
    ours, theirs = tiny_llama(seed=0), tiny_llama(seed=1)
    sequences = [((3, 4), (5, 6, 7)), ((8,), (9,))]
    ratios = [a - b for s in sequences for a, b in zip(plain(ours, *s), plain(theirs, *s), strict=True)]
    found = [response_logps(model, sequences) for model in (ours, theirs)]
    assert kl_per_token(*found) == pytest.approx(sum(ratios) / 4, abs=1e-5)
    assert kl_per_token(found[0], found[0]) == 0
    assert kl_per_token([()], [()]) == 0


def test_kl_on_many_samples_approaches_the_exact_divergence() -> None:
    ours, theirs = tiny_llama(seed=0), tiny_llama(seed=1)
    prompt = (3, 4, 5)
    with torch.no_grad():
        p, q = (model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for model in (ours, theirs))
    exact = float((p.exp() * (p - q)).sum())
    torch.manual_seed(0)
    samples = torch.multinomial(p.exp(), 4000, replacement=True).tolist()
    sequences = [(prompt, (token,)) for token in samples]
    found = [response_logps(model, sequences, batch_size=1000) for model in (ours, theirs)]
    assert kl_per_token(*found) == pytest.approx(exact, rel=0.1)
    assert exact > 0.1
