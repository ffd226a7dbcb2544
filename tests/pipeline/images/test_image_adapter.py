"""Adapters on diffusion models: the reference is the adapter switched off."""

import copy
from pathlib import Path

import pytest
import torch

from pipeline.config import Lora
from pipeline.config.images.scoring import ImageScore
from pipeline.errors import UserError
from pipeline.images.image_adapter import add_image_adapter, merged_network
from pipeline.images.image_folder import image_policy_digest, load_image_policy, save_image_policy
from pipeline.images.image_policy import ImagePolicy
from pipeline.losses import load_preset
from pipeline.models.weights.lora import reference_on
from pipeline.training.train import Trainee, train
from tests.support.image_training import image_pairs, optimisation, scores_of
from tests.support.tiny_diffusion import KINDS, PROMPTS

SCORE = ImageScore()


def scored(policy: ImagePolicy, kind: str) -> torch.Tensor:
    scores = scores_of(policy, PROMPTS[kind], SCORE)
    example = image_pairs(SCORE)[0]
    ids = torch.tensor([[*example.prompt_ids, *c.ids] for c in example.continuations])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2:] = True
    with torch.no_grad():
        found: torch.Tensor = scores(ids, mask).policy
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_switched_off_is_a_frozen_copy(kind: str, tmp_path: Path) -> None:
    """Trained with the adapter off as the live reference and with a frozen copy: the same bits; then saved and read."""
    start = load_image_policy(KINDS[kind](tmp_path / "base"))
    frozen = copy.deepcopy(start.network).requires_grad_(False)
    before = scored(start.with_network(frozen), kind)
    policy = start.with_network(add_image_adapter(start.network, Lora(rank=2, dropout=0.0), seed=0))
    assert torch.equal(scored(policy, kind), before), "an adapter starts as no change"
    scores = scores_of(policy, PROMPTS[kind], SCORE, epochs=2, rows=8)
    examples = image_pairs(SCORE, epochs=2)
    train(Trainee(scores, live=True), examples, load_preset("dpo"), optimisation(epochs=2, learning_rate=1e-2), seed=0)
    trained = scored(policy, kind)
    assert not torch.equal(trained, before)
    with reference_on(policy.network):
        assert torch.equal(scored(policy, kind), before)
    assert torch.equal(scored(policy, kind), trained)
    save_image_policy(policy, tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = load_image_policy(tmp_path / "adapter")
    assert torch.equal(scored(again, kind), trained)
    assert image_policy_digest(tmp_path / "adapter") != image_policy_digest(tmp_path / "base")
    merged = start.with_network(merged_network(again.network))
    assert torch.allclose(scored(merged, kind), trained, rtol=1e-4)
    save_image_policy(merged, tmp_path / "merged")
    assert torch.equal(scored(load_image_policy(tmp_path / "merged"), kind), scored(merged, kind))


def test_only_the_adapter_is_trained(tmp_path: Path) -> None:
    start = load_image_policy(KINDS["class"](tmp_path / "base"))
    network = add_image_adapter(start.network, Lora(rank=2, target_modules=("to_q", "to_v")), seed=0)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name and (".to_q." in name or ".to_v." in name) for name in trained)


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    start = load_image_policy(KINDS["class"](tmp_path / "base"))
    with pytest.raises(UserError, match=r"training\.lora\.target_modules"):
        add_image_adapter(start.network, Lora(target_modules=("nothing",)), seed=0)
