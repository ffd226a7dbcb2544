"""Routers of mixtures of experts: their loss is that of transformers on unpadded rows, however a batch is cut."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from torch import Tensor

from pipeline.config import Lora, Optimisation
from pipeline.models.architectures import make_exact, switch_noise_off
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter
from pipeline.training.auxiliary.modules import modules_for
from pipeline.training.auxiliary.routers import Routers, position_weights
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.gradients import BatchFacts, Objective, accumulate_gradient
from pipeline.training.train import Trainee, train
from tests.pipeline.models.attention.test_windows import EXPERTS, LATE, MIXED, ROUTED, SMALL
from tests.support.tiny_training import dpo, pairs_with_reference, random_pairs

PLAIN = {name: value for name, value in SMALL.items() if name != "head_dim"}
JAMBA: dict[str, Any] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
}
# Families whose loss transformers computes.
FAMILIES: dict[str, Callable[[], Any]] = {
    "ernie 4.5": lambda: hf.Ernie4_5_MoeConfig(**SMALL, moe_num_experts=4, moe_k=2),
    "flex olmo": lambda: hf.FlexOlmoConfig(**SMALL, **EXPERTS),
    "gpt-oss": lambda: hf.GptOssConfig(**MIXED, **EXPERTS),
    "granite moe": lambda: hf.GraniteMoeConfig(**SMALL, **EXPERTS),
    "jamba, padded": lambda: hf.JambaConfig(**SMALL, **EXPERTS, **JAMBA),
    "jetmoe": lambda: hf.JetMoeConfig(**SMALL, **EXPERTS, kv_channels=8),
    "mixtral": lambda: hf.MixtralConfig(**SMALL, **EXPERTS),
    "olmoe": lambda: hf.OlmoeConfig(**SMALL, **EXPERTS),
    "phi-3.5 moe": lambda: hf.PhimoeConfig(**PLAIN, **EXPERTS),
    "qwen 2 moe": lambda: hf.Qwen2MoeConfig(
        **LATE, **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen 3 moe": lambda: hf.Qwen3MoeConfig(**SMALL, **EXPERTS, moe_intermediate_size=16),
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
}
DEEPSEEK: dict[str, Callable[[], Any]] = {
    "deepseek v2": lambda: hf.DeepseekV2Config(**SMALL, **LATENT, **ROUTED),
    "deepseek v3": lambda: hf.DeepseekV3Config(**(SMALL | {"head_dim": 4}), **LATENT, **ROUTED),
    "glm 4.5": lambda: hf.Glm4MoeConfig(**SMALL, **ROUTED, num_experts_per_tok=2, moe_intermediate_size=16),
}
# Large, so that it shows in gradients.
COEFFICIENT = 3.0


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    settings = {**FAMILIES, **DEEPSEEK}[family]()
    switch_noise_off(settings)
    model = hf.AutoModelForCausalLM.from_config(settings).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return make_exact(model)


def objective(model: Any, packing: bool, coefficient: float | None = COEFFICIENT) -> Objective:
    loss = dpo()
    policy = TokenLogps(model, share_prompts=packing, whole_rows=True)
    modules = modules_for(model, None, loss.composition, seed=0)
    return Objective(policy, loss, modules, Accelerator(), routers=Routers(model, coefficient))


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def taken(given: Objective, pairs: Sequence[Example], cut: Cut) -> tuple[BatchFacts, dict[str, Tensor]]:
    facts = accumulate_gradient(given, pairs, cut)
    policy: Any = given.policy
    return facts, gradients(policy.model)


def plain_loss(model: Any, pairs: Sequence[Example]) -> Tensor:
    """transformers' loss of all rows of ``pairs``: each row alone, its router logits joined layer by layer."""
    logits: list[list[Tensor]] = []
    for pair in pairs:
        for response in pair.responses:
            ids = torch.tensor([pair.prompt_ids + response.ids])
            logits.append([*model(input_ids=ids, output_router_logits=True, use_cache=False).router_logits])
    layers = tuple(torch.cat([one.flatten(0, -2) for one in layer]) for layer in zip(*logits, strict=True))
    formula: Any = hf.models.mixtral.modeling_mixtral.load_balancing_loss_func
    found: Tensor = formula(layers, 4, 2)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradient_are_those_of_transformers_on_unpadded_rows(family: str) -> None:
    model = tiny(family)
    pairs = pairs_with_reference(model, 5)
    (plain_loss(model, pairs) * COEFFICIENT).backward()
    expected, balance = gradients(model), float(plain_loss(model, pairs).detach())
    one = model(input_ids=torch.tensor([[3, 4, 5, 6]]), output_router_logits=True, use_cache=False)
    assert float(Routers(model).coefficient) > 0 and one.aux_loss is not None
    cuts = [Cut(5), Cut(2)] if "padded" in family else [Cut(5), Cut(2), Cut(5, packing=True), Cut(9, 30, packing=True)]
    for cut in cuts:
        _, without = taken(objective(model, cut.packing, 0.0), pairs, cut)
        facts, both = taken(objective(model, cut.packing), pairs, cut)
        assert facts.experts is not None and facts.experts.router_aux_loss == pytest.approx(balance, abs=1e-5)
        scale = max(float(values.abs().max()) for values in expected.values())
        assert scale > 1e-2
        for name, values in both.items():
            due = expected.get(name, torch.zeros_like(values))
            torch.testing.assert_close(values - without[name], due, atol=1e-5 * max(1, scale), rtol=0, msg=name)


def test_transformers_own_value_of_a_row_is_its_part() -> None:
    model = tiny("mixtral")
    (pair,) = random_pairs(1)
    text = Example.text("0", pair.prompt_ids, pair.responses[0].ids)
    ids = torch.tensor([pair.prompt_ids + pair.responses[0].ids])
    expected = model(input_ids=ids, output_router_logits=True, use_cache=False).aux_loss
    routers = Routers(model)
    batch = collate([text])
    with routers.watched() as passed:
        TokenLogps(model, whole_rows=True)(batch.ids, batch.mask)
    routed = routers.routed(passed, batch)
    assert routed is not None
    torch.testing.assert_close(routed.balance(routed.counts), expected)
    assert routers.coefficient == model.config.router_aux_loss_coef == 0.001


def test_a_prompt_counts_once_for_each_of_its_rows_and_fillers_and_padding_never() -> None:
    pair = Example.pair("0", (3, 4), (5, 6), (7,))
    other = Example.pair("1", (8,), (9,), (10, 11))
    # Rows: chosen of both and a filler, rejected of both and a filler.
    padded = collate([pair, other], 3)
    assert position_weights(padded, padded.ids.numel()).view(6, 4).int().tolist() == [
        [1, 1, 1, 1],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    packed = collate([pair, other], 3, packing=True)
    assert packed.packed is not None
    assert packed.packed.ids.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    # Two more positions fill the stream up.
    assert position_weights(packed, 11).int().tolist() == [2, 2, 1, 1, 1, 2, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("family", ["mixtral", "deepseek v3"])
def test_loads_are_counted_by_hand(family: str) -> None:
    model = tiny(family)
    pairs = random_pairs(4)
    layers = [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]
    by_layer = torch.zeros(len(layers), 4)

    def counting(at: int) -> Callable[..., None]:
        def count(_: Any, __: Any, made: Any) -> None:
            by_layer[at] += made[2].flatten().bincount(minlength=4)

        return count

    hooks = [module.register_forward_hook(counting(at)) for at, module in enumerate(layers)]
    for pair in pairs:
        for response in pair.responses:
            model(input_ids=torch.tensor([pair.prompt_ids + response.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    counts = by_layer.sum(0)
    given = pairs_with_reference(model, 4)
    for cut in (Cut(4), Cut(1), Cut(4, packing=True)):
        facts, _ = taken(objective(model, cut.packing, None), given, cut)
        assert facts.experts is not None
        assert facts.experts.expert_shares == pytest.approx((counts / counts.sum()).tolist(), abs=1e-6)
        worst = float((by_layer.amax(1) / by_layer.mean(1)).max())
        assert facts.experts.expert_imbalance == pytest.approx(worst)


@pytest.mark.parametrize("family", DEEPSEEK)
def test_models_without_a_coefficient_are_not_balanced_by_a_loss(family: str) -> None:
    model = tiny(family)
    routers = Routers(model)
    assert routers and routers.coefficient == 0 and not routers.trained
    facts, _ = taken(objective(model, True, None), pairs_with_reference(model, 2), Cut(2, packing=True))
    assert facts.experts is not None and facts.experts.router_aux_loss is None


def test_a_dense_model_has_no_routers() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    routers = Routers(model, 1.0)
    assert not routers and not routers.trained


@pytest.mark.parametrize("family", ["mixtral", "jamba, padded"])
def test_a_run_trains_the_loss_of_the_config_and_logs_it(family: str) -> None:
    found = {}
    for coefficient in (None, 0.0, 3.0):
        model = tiny(family)
        model.config.router_aux_loss_coef = 3.0
        pairs = pairs_with_reference(model, 6)
        settings = Optimisation(batch_size=3, learning_rate=1e-3, micro_batch_size=2, warmup=0)
        result = train(Trainee(model, router_aux_loss_coef=coefficient), pairs, dpo(), settings, seed=0)
        step = result.history[-1]
        assert step.expert_imbalance is not None and 1 <= step.expert_imbalance <= 2
        assert step.expert_shares is not None and sum(step.expert_shares) == pytest.approx(1, abs=1e-5)
        assert result.metrics["expert_imbalance"] == step.expert_imbalance
        assert (step.router_aux_loss is None) == (coefficient == 0.0)
        assert ("router_aux_loss" in result.metrics) == (coefficient != 0.0)
        found[coefficient] = model.state_dict()["model.embed_tokens.weight"].clone()
    assert torch.equal(found[None], found[3.0])
    assert not torch.equal(found[None], found[0.0])


def test_gradient_checkpointing_and_an_adapter_change_nothing_in_what_routers_are_told() -> None:
    model = tiny("mixtral")
    pairs, cut = pairs_with_reference(model, 3), Cut(3, packing=True)
    facts, expected = taken(objective(model, True), pairs, cut)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    again, found = taken(objective(model, True), pairs, cut)
    assert again.experts == facts.experts
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    model.gradient_checkpointing_disable()
    adapted = add_adapter(model.eval(), Lora(rank=2), seed=0)
    of_adapter, gradient = taken(objective(adapted, True), pairs, cut)
    assert of_adapter.experts == facts.experts
    assert any(float(values.abs().max()) > 0 for values in gradient.values())
