"""The likelihood term alone."""

import pytest
import torch

from pipeline.losses import PairBatch, Side, load_preset


def test_value_is_the_mean_negative_log_likelihood_of_each_text() -> None:
    policy = torch.tensor([[9.0, -1.0, -3.0], [9.0, -0.5, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, True, False]])
    output = load_preset("sft")(PairBatch(chosen=Side(policy=policy, mask=mask)))
    assert output.per_pair.tolist() == [2.0, 0.5]
    output.per_pair.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[0, -0.5, -0.5], [0, -1, 0]]
    assert float(output.metrics["chosen_logp_per_token"]) == -1.25
    assert "margin" not in output.metrics


def test_it_needs_nothing_but_the_text() -> None:
    assert load_preset("sft").needs.fields == frozenset()


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="chosen: no response tokens in row 0"):
        load_preset("sft")(PairBatch(chosen=Side(policy=torch.zeros(1, 2), mask=torch.zeros(1, 2, dtype=torch.bool))))
