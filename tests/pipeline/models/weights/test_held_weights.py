"""Frozen weights take the bytes of their format, and nothing makes a wider copy of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from pipeline.config import ChatSettings, Lora, Optimisation, Quantisation
from pipeline.errors import UserError
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_for_scoring, load_policy, save_policy, save_probe, write_merged
from pipeline.models.weights.held_weights import held_bytes, require_linear_layers
from pipeline.models.weights.lora import add_adapter, add_reference, save_adapter
from pipeline.models.weights.weight_format import WeightFormat, require_unquantised, stored_dtype
from pipeline.training.reference import reference_logps, with_references
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_training import dpo, random_pairs, trained

NF4, INT8 = Quantisation(), Quantisation(bits=8)
HELD = {
    "float32": WeightFormat(),
    "bfloat16": WeightFormat("bfloat16"),
    "float16": WeightFormat("float16"),
    "4 bits": WeightFormat("bfloat16", NF4),
    "8 bits": WeightFormat("bfloat16", INT8),
}
# No pass has as many tokens as a matrix has rows, so that only copies of weights have their shapes.
WIDE, INNER = 96, 160
# Of the model: 2 layers; two tables of 300 rows; 5 norms. Its rotary frequencies are 2 buffers of 24 floats.
LINEAR, OTHER, BUFFERS = 2 * (4 * WIDE * WIDE + 3 * WIDE * INNER), 2 * 300 * WIDE + 5 * WIDE, 192
NARROW = {name: held for name, held in HELD.items() if name != "float32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in bfloat16, as most models are."""
    folder = save_tiny_model(tmp_path_factory.mktemp("base"))
    settings = LlamaConfig.from_pretrained(folder)
    settings.hidden_size, settings.intermediate_size, settings.head_dim = WIDE, INNER, WIDE // 2
    torch.manual_seed(0)
    LlamaForCausalLM(settings).to(torch.bfloat16).save_pretrained(folder)
    return folder


class WideCopies(TorchDispatchMode):
    """Notes every float32 result that has the shape of a frozen matrix, whatever makes it."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        model = LlamaForCausalLM.from_pretrained(base)
        self._shapes = {s for p in model.parameters() if p.ndim == 2 for s in (tuple(p.shape), tuple(p.shape)[::-1])}
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32 and tuple(one.shape) in self._shapes:
                self.found.append(str(func))
        return made


@pytest.mark.parametrize("name", HELD)
def test_a_scorer_takes_the_bytes_of_its_format(base: Path, name: str) -> None:
    held = HELD[name]
    model = load_for_scoring(str(base), held)
    assert not any(p.requires_grad for p in model.parameters()), "autocast keeps a copy of what requires a gradient"
    size = 4 if name == "float32" else 2
    # Each row or block has a scale of its own.
    of_linear = {"4 bits": (0.5 * LINEAR, 0.6 * LINEAR), "8 bits": (LINEAR, 1.08 * LINEAR)}
    least, most = of_linear.get(name, (size * LINEAR, size * LINEAR))
    codes = 4 * 4096 if name == "4 bits" else 0  # tables that bitsandbytes shares between layers of a real model
    rest = held_bytes(model) - size * OTHER - BUFFERS
    assert least <= rest <= most + codes
    before = held_bytes(model)
    reference_logps(model, random_pairs(4), dtype="bfloat16")
    assert held_bytes(model) == before


@pytest.mark.parametrize("name", NARROW)
def test_nothing_makes_a_float32_copy_of_a_frozen_weight(base: Path, tmp_path: Path, name: str) -> None:
    held, chat = NARROW[name], load_chat(str(base), ChatSettings())
    earlier = save_tiny_adapter(tmp_path / "earlier", base, Lora(rank=2), seed=1, held=held)
    with WideCopies(base) as copies:
        scorer = load_for_scoring(str(earlier), held)
        logps = reference_logps(scorer, random_pairs(8))
        examples = with_references(random_pairs(8), [logps])
        model = load_policy(str(earlier), held=held, trained=True)
        add_reference(model, earlier)
        settings = Optimisation(batch_size=8, learning_rate=1e-3, warmup=0, gradient_checkpointing=True)
        result = trained(model, examples, dpo(), settings, starts_at_reference=True)
        save_adapter(model, tmp_path / "adapter", str(base))
        save_probe(model, chat, tmp_path / "adapter")
        write_merged(str(tmp_path / "adapter"), tmp_path / "merged")
    assert result.history[0].loss == pytest.approx(0.693147, abs=1e-4)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    # Adding an adapter's product to a matrix takes one matrix at a time, on its way into the merged model.
    assert [made for made in copies.found if "mm" not in made and "mul" not in made] == []
    assert stored_dtype(tmp_path / "merged") == "bfloat16"


def test_a_planted_float32_copy_is_found(base: Path) -> None:
    model = load_for_scoring(str(base), HELD["bfloat16"])
    with WideCopies(base) as copies:
        model.lm_head.weight.float()
    assert copies.found


def test_base_and_reference_share_their_weights(base: Path, tmp_path: Path) -> None:
    held = HELD["4 bits"]
    earlier = save_tiny_adapter(tmp_path / "earlier", base, Lora(rank=2), seed=1, held=held)
    alone = held_bytes(load_policy(str(earlier), held=held, trained=True))
    model = load_policy(str(earlier), held=held, trained=True)
    add_reference(model, earlier)
    weights = (earlier / "adapter_model.safetensors").stat().st_size
    assert 0 < held_bytes(model) - alone <= weights


@pytest.mark.parametrize("name", HELD)
def test_a_row_has_the_same_values_beside_any_others_in_training_and_in_scoring(base: Path, name: str) -> None:
    """Quantised layers of bitsandbytes' own repack themselves in evaluation, and look at all rows for outliers."""
    model = add_adapter(load_policy(str(base), held=HELD[name]), Lora(rank=2), seed=0)
    examples = random_pairs(6)
    (first,) = reference_logps(model, examples[:1], dtype="bfloat16")
    model.train()
    together = reference_logps(model, examples, dtype="bfloat16")[0]
    for ours, theirs in zip(first, together, strict=True):
        assert ours == pytest.approx(theirs, abs=0.05)
    loss = -sum(model(torch.tensor([[9, 20, 33]])).logits.float().log_softmax(-1)[0, :, 5])
    loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert len(gradients) == 14 and all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_formats_by_the_file(base: Path, tmp_path: Path) -> None:
    assert stored_dtype(base) == "bfloat16"
    assert stored_dtype(save_tiny_model(tmp_path)) == "float32"
    (tmp_path / "config.json").write_text("{}")
    assert stored_dtype(tmp_path) == "float32", "by the header of the weights"
    assert WeightFormat("bfloat16").passes("float32") == "bfloat16"
    assert WeightFormat("float32").passes("float32") == "float32"
    assert WeightFormat("float32", NF4).passes("float32") == "bfloat16"
    assert WeightFormat("float32", Quantisation(compute_dtype="float32")).passes("float32") == "float32"


def test_models_that_cannot_be_quantised(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=0, hidden_size=32, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"policy.quantisation: .*\(llama\) has no linear layers to quantise but its"):
        require_linear_layers(str(tmp_path))
    # Layers of GPT-2 are linear by another name.
    GPT2Config(n_layer=1, n_embd=32, n_head=1).save_pretrained(tmp_path)
    require_linear_layers(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}')
    with pytest.raises(UserError, match=r"policy.path: .* its files hold quantised weights \(awq\)"):
        require_unquantised(tmp_path)


def masters_of(folder: Path) -> Callable[[str], torch.Tensor]:
    model = LlamaForCausalLM.from_pretrained(folder)
    return lambda name: model.get_parameter(name)


def test_a_policy_is_stored_in_16_bits_and_what_that_loses_beside_it(base: Path, tmp_path: Path) -> None:
    model, chat = load_policy(str(base)), load_chat(str(base), ChatSettings())
    with torch.no_grad():
        model.lm_head.weight += 1e-5
    whole = model.lm_head.weight.detach().clone()
    for masters in (True, False):
        folder = tmp_path / str(masters)
        given = load_policy(str(base))
        given.lm_head.weight.data = whole.clone()
        save_policy(given, folder, tokenizer_source=str(base), chat=chat, dtype="bfloat16", masters=masters)
        assert stored_dtype(folder) == "bfloat16" and (folder / "masters").is_dir() == masters
    ours = masters_of(tmp_path / "True" / "masters")("lm_head.weight")
    assert ours.dtype == torch.float32 and torch.equal(ours, whole)
    assert torch.equal(masters_of(tmp_path / "True")("lm_head.weight"), whole.bfloat16())
