"""Run by test_train_processes.py in several processes: each gradient, and two steps of some losses, to a file."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, MixtralConfig, MixtralForCausalLM

from pipeline.config import Composition, Lora
from pipeline.config.images.scoring import ImageScore, WeighedLoser
from pipeline.config.training import ReferenceSync
from pipeline.images.image_folder import load_image_policy
from pipeline.losses import Loss
from pipeline.models.classifier_scores import RowScores
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter
from pipeline.training.auxiliary.loser_guard import guard_of
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.auxiliary.routers import Routers
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.gradients import Objective, accumulate_gradient
from pipeline.training.reference import reference_logps, with_references
from pipeline.training.train import Placement
from tests.support.image_training import image_pairs
from tests.support.image_training import scores_of as image_scores_of
from tests.support.loss_examples import examples_for, loss_named, settings
from tests.support.tiny_diffusion import class_conditional
from tests.support.tiny_training import VOCABULARY, random_pairs, tiny_llama, trained

GRADIENTS = (
    "aot",
    "aot_unpaired",
    "dpo",
    "simpo",
    "tdpo2",
    "sparsepo",
    "mi_dpo",
    "beta_dpo",
    "kto",
    "bco",
    "hpo",
    "rpo_sqloo",
    "ganpo",
    "mpo",
    "apa_token",
)
REWARD_MODEL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_labels": 1,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    **{name: value for name, value in REWARD_MODEL.items() if name != "num_labels"},
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}
STEPS = ("dpo", "sparsepo", "beta_dpo", "apa_token", "ganpo")


CUTS = {"padded": Cut(1), "packed": Cut(3, 60, packing=True)}


def gradient(name: str, cut: str, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    loss, model = loss_named(name), tiny_llama()
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    reference = tiny_llama(seed=1)
    policy = TokenLogps(model, "float32", loss.needs.token_facts, reference, share_prompts=CUTS[cut].packing)
    objective = Objective(accelerator.prepare(policy), loss, companions, accelerator)
    facts = accumulate_gradient(objective, examples_for(loss, 7), CUTS[cut])
    named = [*model.named_parameters(), *companions.named().items()]
    found = {f"{name}.{cut}.{part}": p.grad for part, p in named if p.grad is not None}
    if facts.module_means is not None:
        found[f"{name}.{cut}.means"] = facts.module_means
    return found, facts.loss


def reward_gradient(accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    """Of a reward model's comparisons."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**REWARD_MODEL))
    loss = Loss("bradley_terry", Composition.model_validate({"link": "logistic"}))
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    scores = accelerator.prepare(RowScores(model, {0: 1.0}, share_prompts=True))
    facts = accumulate_gradient(Objective(scores, loss, companions, accelerator), random_pairs(7), Cut(2, packing=True))
    return {f"reward.{part}": p.grad for part, p in model.named_parameters() if p.grad is not None}, facts.loss


def expert_gradient(cut: str, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    """Of a mixture of experts, whose routers are balanced over all processes."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**EXPERTS))
    loss = loss_named("dpo")
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    policy = accelerator.prepare(TokenLogps(model, share_prompts=CUTS[cut].packing, whole_rows=True))
    objective = Objective(policy, loss, companions, accelerator, routers=Routers(model, 3.0))
    facts = accumulate_gradient(objective, examples_for(loss, 7), CUTS[cut])
    assert facts.experts is not None and facts.experts.router_aux_loss is not None
    found = {f"experts.{cut}.{part}": p.grad for part, p in model.named_parameters() if p.grad is not None}
    found[f"experts.{cut}.shares"] = torch.tensor(facts.experts.expert_shares)
    return found, facts.loss + facts.experts.router_aux_loss


def image_gradient(name: str, score: ImageScore, accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    """Of pairs of images, whose loser's gradient may be weighed."""
    loss = loss_named(name)
    with tempfile.TemporaryDirectory() as folder:
        policy = load_image_policy(class_conditional(Path(folder) / "policy"))
        start = load_image_policy(class_conditional(Path(folder) / "start", seed=1))
    scores = image_scores_of(policy, [0, 3], score, rows=16)
    examples = with_references(
        image_pairs(score), [reference_logps(scores.with_network(start.network), image_pairs(score))]
    )
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    guard = guard_of(scores, accelerator)
    objective = Objective(accelerator.prepare(scores), loss, companions, accelerator, guard=guard)
    facts = accumulate_gradient(objective, examples[:7], Cut(2))
    kind = "weighed" if guard is not None else "whole"
    named = policy.network.named_parameters()
    return {f"images.{name}.{kind}.{part}": p.grad for part, p in named if p.grad is not None}, facts.loss


def steps(name: str, accelerator: Accelerator, lora: bool = False) -> tuple[dict[str, torch.Tensor], float]:
    loss, model = loss_named(name), tiny_llama()
    policy = add_adapter(model, Lora(rank=2, dropout=0.0), seed=3) if lora else model
    twice = settings(batch_size=7, micro_batch_size=2, warmup=0, max_steps=2, epochs=2.0)
    reference = None if lora else tiny_llama(seed=1)
    examples = examples_for(loss, 7, tiny_llama() if lora else tiny_llama(seed=1))
    result = trained(policy, examples, loss, twice, seed=0, placement=Placement(accelerator), reference=reference)
    weights = {f"steps.{name}.{part}": p.detach() for part, p in policy.named_parameters() if p.requires_grad}
    return weights, result.history[-1].loss


def moved(accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], float]:
    """Two steps, with a move of the reference after the first."""
    model, reference = tiny_llama(), tiny_llama(seed=1)
    twice = settings(batch_size=7, micro_batch_size=2, warmup=0, max_steps=2, epochs=2.0)
    sync, where = ReferenceSync(every=1, mix=0.6), Placement(accelerator)
    examples = examples_for(loss_named("dpo"), 7, tiny_llama(seed=1))
    result = trained(
        model, examples, loss_named("dpo"), twice, seed=0, placement=where, reference=reference, reference_sync=sync
    )
    weights = {f"steps.moved.{part}": p.detach() for part, p in model.named_parameters()}
    return weights | {f"steps.reference.{part}": p for part, p in reference.named_parameters()}, result.history[-1].loss


accelerator = Accelerator(cpu=True)
tensors: dict[str, torch.Tensor] = {}
losses: list[float] = []
for found, loss in [
    *(gradient(name, cut, accelerator) for name in GRADIENTS for cut in CUTS),
    reward_gradient(accelerator),
    *(expert_gradient(cut, accelerator) for cut in CUTS),
    *(image_gradient(name, ImageScore(draws=2), accelerator) for name in ("dpo", "diffusion_kto")),
    image_gradient("dpo", ImageScore(loser=WeighedLoser(weight=0.5)), accelerator),
    *(steps(name, accelerator) for name in STEPS),
    steps("tdpo2", accelerator, lora=True),
    moved(accelerator),
]:
    tensors |= found
    losses.append(loss)
if accelerator.is_main_process:
    facts = {"processes": str(accelerator.num_processes), "losses": " ".join(map(str, losses))}
    save_file({name: t.contiguous() for name, t in tensors.items()}, sys.argv[1], metadata=facts)
accelerator.end_training()
