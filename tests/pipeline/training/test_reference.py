"""Log-probabilities under models that are not trained."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.config.loss.components import GivenWeights
from pipeline.errors import RunError
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.distributed.passes import PASS_TOKENS, sequences_a_pass
from pipeline.training.reference import (
    contrastive_weights,
    dispersions,
    kl_per_token,
    reference_logps,
    reference_values,
    response_logps,
    with_references,
)
from tests.support.tiny_training import random_groups, random_pairs, random_texts, random_unpaired, tiny_llama


def plain(model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(response)]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_values_come_in_the_order_of_the_examples(batch_size: int) -> None:
    model = tiny_llama()
    pairs = [replace(e, calibration=Continuation((7, 8))) for e in random_pairs(5)]
    for examples in (pairs, random_unpaired(3), random_groups(3, sizes=(3, 2)), random_texts(2)):
        for example, found in zip(examples, reference_logps(model, examples, batch_size), strict=True):
            assert len(found) == len(example.continuations)
            for logps, continuation in zip(found, example.continuations, strict=True):
                assert list(logps) == pytest.approx(plain(model, example.prompt_ids, continuation.ids), abs=1e-5)


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


def test_references_come_in_the_order_of_the_passes() -> None:
    pair = replace(Example.pair("a", (1,), (2,), (3, 4)), calibration=Continuation((5,)))
    (filled,) = with_references([pair], [[((-1.0,), (-2.0, -3.0), (-4.0,))], [((-5.0,), (-6.0, -7.0), (-8.0,))]])
    assert [c.references for c in filled.continuations] == [
        ((-1.0,), (-5.0,)),
        ((-2.0, -3.0), (-6.0, -7.0)),
        ((-4.0,), (-8.0,)),
    ]
    assert filled.with_continuations(pair.continuations) == pair


def test_references_of_other_examples_are_refused() -> None:
    pairs = random_pairs(2)
    for logps in ([((-1.0,), (-2.0,))], [((-1.0,), (-2.0,)), ((-1.0,),)]):
        with pytest.raises(ValueError, match="of other examples"):
            with_references(pairs, [logps])


def test_entropy_is_the_mean_over_responses_of_the_mean_over_tokens() -> None:
    model, pairs = tiny_llama(), random_pairs(4)
    pairs[1] = replace(pairs[1], calibration=Continuation((7, 8, 9)))
    for example, values in zip(pairs, reference_values(model, pairs, batch_size=2, entropy=True), strict=True):
        means = []
        for continuation in example.responses:
            with torch.no_grad():
                logits = model(torch.tensor([example.prompt_ids + continuation.ids])).logits[0]
            p = logits[len(example.prompt_ids) - 1 : -1].softmax(-1)
            means.append(float(-(p * p.log()).sum(-1).mean()) / math.log(40))
        assert values.entropy == pytest.approx(sum(means) / 2, abs=1e-5)
    assert [v.logps for v in reference_values(model, pairs, entropy=True)] == reference_logps(model, pairs)
    assert reference_values(model, pairs)[0].entropy is None


def test_dispersion_is_the_scaled_negative_log_of_the_entropy() -> None:
    assert dispersions([0.5, 0.25], scale=2.0) == pytest.approx([2 * math.log(2), 4 * math.log(2)])
    assert dispersions([0.5, 0.25]) == pytest.approx([2 / 3, 4 / 3])
    assert dispersions([0.5, 1.0 + 1e-7]) == pytest.approx([2, 0])
    assert dispersions([]) == []
    with pytest.raises(RunError, match="entropy is maximal at every token"):
        dispersions([1.0, 1.0])


def test_a_reference_that_is_certain_has_a_finite_dispersion() -> None:
    assert all(math.isfinite(d) for d in dispersions([0.0, 0.5]))


def test_contrastive_weights_are_clamped_and_turned_for_the_rejected_response() -> None:
    settings = GivenWeights(mu=2.0, low=-0.5, high=1.5)
    positive, negative = (-1.0, -3.0, -1.0), (-1.25, -1.0, -9.0)
    expected = [math.exp(0.5), math.exp(-1.0), math.exp(3.0)]
    assert contrastive_weights(positive, negative, settings, chosen=True) == pytest.approx(expected)
    turned = [1 / weight for weight in expected]
    assert contrastive_weights(positive, negative, settings, chosen=False) == pytest.approx(turned)


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


def test_passes_of_an_accelerator_are_limited_by_tokens_alone() -> None:
    assert sequences_a_pass(2, "cpu") == 2 and sequences_a_pass(2, "cuda") >= PASS_TOKENS
