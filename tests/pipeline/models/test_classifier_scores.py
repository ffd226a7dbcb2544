"""Rewards as what a loss reads: the gradient of a batch, however it is cut; training that is taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForSequenceClassification

from pipeline.config import Composition, Optimisation
from pipeline.errors import RunError
from pipeline.losses import Loss
from pipeline.models.attention.packing import Packed
from pipeline.models.classifier_scores import RowScores
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.gradients import Objective, accumulate_gradient
from pipeline.training.train import StepReport, TrainResult
from pipeline.training.watch.self_test import check_packing
from tests.support.tiny_training import VOCABULARY, random_pairs, trained

BRADLEY_TERRY = Loss("bradley_terry", Composition.model_validate({"link": "logistic"}))
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}


def classifier() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=VOCABULARY, num_labels=1, initializer_range=0.2, pad_token_id=0)
    return LlamaForSequenceClassification(config)


def gradient(examples: list[Example], cut: Cut) -> tuple[dict[str, torch.Tensor], float]:
    scores = RowScores(classifier(), {0: 1.0}, share_prompts=cut.packing)
    companions = AuxiliaryModules(BRADLEY_TERRY.composition, 32, 2, 32, seed=1)
    facts = accumulate_gradient(Objective(scores, BRADLEY_TERRY, companions, Accelerator()), examples, cut)
    return {name: p.grad for name, p in scores.model.named_parameters() if p.grad is not None}, facts.loss


def plain_gradient(examples: list[Example]) -> tuple[dict[str, torch.Tensor], float]:
    """Of the mean of −log σ(r_w − r_l), by the library's own classifier, one row at a time."""
    model = classifier()

    def reward(example: Example, index: int) -> torch.Tensor:
        ids = example.prompt_ids + example.responses[index].ids
        found: torch.Tensor = model(torch.tensor([ids])).logits[0, 0]
        return found

    losses = [-logsigmoid(reward(e, 0) - reward(e, 1)) for e in examples]
    loss = torch.stack(losses).mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, float(loss.detach())


@pytest.mark.parametrize("cut", [Cut(7), Cut(1), Cut(3), Cut(7, packing=True), Cut(7, 40, packing=True)], ids=str)
def test_the_gradient_is_that_of_bradley_and_terry_however_the_batch_is_cut(cut: Cut) -> None:
    examples = random_pairs(7)
    expected, loss = plain_gradient(examples)
    found, same = gradient(examples, cut)
    assert same == pytest.approx(loss, abs=1e-6)
    assert found.keys() == expected.keys() and float(expected["score.weight"].abs().max()) > 1e-2
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_rewards_are_in_32_bits_where_matrix_products_are_in_16() -> None:
    ids = torch.arange(1, 19).reshape(2, 9)
    exact, rounded, third = (
        RowScores(classifier(), {0: weight}, dtype)(ids, ids > 5).policy[:, -1].detach()
        for weight, dtype in ((1.0, "float32"), (1.0, "bfloat16"), (1 / 3, "bfloat16"))
    )
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(third, rounded / 3)


class KilledError(Exception):
    pass


def fit(model: Any, *, kill_at: int = 0, **options: Any) -> TrainResult:
    def on_step(report: StepReport) -> None:
        if report.step == kill_at:
            raise KilledError

    settings = Optimisation(batch_size=4, micro_batch_tokens=60, learning_rate=1e-3, epochs=2.0, checkpoint_every=3)
    scores = RowScores(model, {0: 1.0}, share_prompts=True)
    return trained(scores, random_pairs(18), BRADLEY_TERRY, settings, seed=5, on_step=on_step, **options)


def test_a_killed_run_goes_on_in_the_middle_of_an_epoch_bit_by_bit(tmp_path: Path) -> None:
    whole, resumed = classifier(), classifier()
    expected = fit(whole)
    assert expected.padded_because is None and expected.history[-1].loss < expected.history[0].loss
    with pytest.raises(KilledError):
        fit(classifier(), kill_at=8, checkpoints=tmp_path)
    result = fit(resumed, checkpoints=tmp_path)
    assert all(torch.equal(t, resumed.state_dict()[name]) for name, t in whole.state_dict().items())
    assert [r.loss for r in result.history] == [r.loss for r in expected.history]


def test_a_response_that_sees_its_sibling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.training.batches.collate

    pack = pipeline.training.batches.collate.pack

    def leaking(*given: Any) -> Any:
        packed = pack(*given)
        packed.branch.zero_()
        return packed

    monkeypatch.setattr(pipeline.training.batches.collate, "pack", leaking)
    with pytest.raises(RunError, match="packed and padded rows differ"):
        fit(classifier())


def test_a_wrong_reward_of_a_long_response_is_not_thinned_by_its_tokens() -> None:
    class Shifted(RowScores):
        def of_stream(self, packed: Packed) -> torch.Tensor:
            return super().of_stream(packed) + 0.01

    tokens = tuple(range(2, 22))
    pairs = [Example.pair(str(i), (1, 2), tokens * 20, (*tokens * 20, 5 + i)) for i in range(2)]
    scores, accelerator = Shifted(classifier(), {0: 1.0}, share_prompts=True), Accelerator()
    with pytest.raises(RunError, match=r"packed and padded rows differ by 0\.01 nats"):
        check_packing(scores, pairs, Cut(2, packing=True), accelerator, "float32")
