"""Every family that people align: packed, padded and plain are one model; saved, loaded, adapted, and still one."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.config import ChatSettings, Lora
from pipeline.models.architectures import attention_cap, auto_class
from pipeline.models.attention.packing import pack
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, save_policy
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter
from pipeline.models.weights.weight_format import WeightFormat
from tests.support.tiny_families import FAMILIES, WITH_IMAGES, WORDS, save_family

# GPT BigCode's own code calls it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
# One family of each mechanism; the others run with `make whole`.
USUAL = frozenset(
    {
        *("bloom", "cohere 2", "deepseek v3", "falcon", "gemma 2", "gemma 3", "gemma 3 with images", "gpt-2"),
        *("gpt-oss", "granite", "jamba", "lfm 2", "llama", "llama 4 with images", "mamba", "mixtral", "nemotron-h"),
        *("opt, projected", "phi 3", "phi 3.5 moe", "qwen 2.5 with images", "qwen 3 moe", "qwen 3.5 with images"),
        *("stablelm", "llama, tied"),
    }
)
CELLS = [pytest.param(name, marks=() if name in USUAL else pytest.mark.whole) for name in FAMILIES]
# Why a family is padded; all others share prompts.
STATE, SHORT_CONVOLUTION = "keeps a recurrent state", "mixes neighbouring tokens by a convolution"
DISTANCES, OWN_CODE = "(ALiBi)", "not taken from transformers' registry"
PADDED = {
    **dict.fromkeys(("bloom", "falcon alibi", "mpt"), DISTANCES),
    **dict.fromkeys(("codegen", "falcon", "gpt neo", "gpt-j"), OWN_CODE),
    **dict.fromkeys(("lfm 2", "lfm 2 moe"), SHORT_CONVOLUTION),
    **dict.fromkeys(
        (
            *("bamba", "falcon h1", "falcon mamba", "granite moe hybrid", "jamba", "kimi linear", "mamba", "mamba 2"),
            *("minimax", "nemotron-h", "nemotron-h moe", "olmo hybrid", "qwen 3 next", "qwen 3.5", "qwen 3.5 moe"),
            *("qwen 3.5 moe with images", "qwen 3.5 with images", "recurrent gemma", "zamba 2"),
        ),
        STATE,
    ),
}
# In the names of what reads images.
IMAGES = re.compile("vision|visual|multi_modal_projector|connector|embed_vision")
# Two prompts, each with two responses; the longest row is three windows long.
_DRAW = torch.Generator().manual_seed(1)
LENGTHS = ((11, (9, 14)), (6, (3, 12)))


def drawn(length: int) -> tuple[int, ...]:
    return tuple(torch.randint(7, 250, (length,), generator=_DRAW).tolist())


ROWS = [(prompt, drawn(length)) for size, lengths in LENGTHS for prompt in [drawn(size)] for length in lengths]
TOKENS = sum(len(response) for _, response in ROWS)


@dataclass(frozen=True)
class Values:
    """Log-probs of the response tokens of ``ROWS``, and the gradient of their mean."""

    logps: Tensor
    gradients: dict[str, Tensor]


def of(model: torch.nn.Module, logps: Tensor) -> Values:
    model.zero_grad()
    torch.autograd.backward(logps.sum() / TOKENS)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Values(logps.detach(), found)


def ours(model: Any, *, share_prompts: bool) -> tuple[Values, str | None]:
    """Values of all rows in one pass, and why they were padded."""
    facts = TokenLogps(model, share_prompts=share_prompts)
    longest = max(len(prompt) + len(response) for prompt, response in ROWS)
    ids = torch.tensor([[*p, *r, *[0] * (longest - len(p) - len(r))] for p, r in ROWS])
    mask = torch.tensor([[len(p) <= at < len(p) + len(r) for at in range(longest)] for p, r in ROWS])
    packed = pack(ROWS) if facts.padded_because is None else None
    return of(model, facts(ids, mask, packed).policy[mask]), facts.padded_because


def plain(folder: Path) -> Values:
    """transformers' own values of each row alone, for parameters that take part in text."""
    settings = load_policy(str(folder)).config
    eager = {"attn_implementation": "eager"} if attention_cap(settings) else {}
    model = auto_class(settings).from_pretrained(folder, dtype=torch.float32, **eager).eval()
    rows = []
    for prompt, response in ROWS:
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
        rows.append(logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])[:, 0])
    return of(model, torch.cat(rows))


def assert_same(found: Values, expected: Values) -> None:
    torch.testing.assert_close(found.logps, expected.logps, rtol=0, atol=1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    # Of the largest gradient, if it is above 1: rounding grows with size.
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected.gradients.values()))
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, expected.gradients[name], rtol=0, atol=1e-5 * largest, msg=name)


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    return found


def settings_of(folder: Path) -> Any:
    """config.json, without the precision of its parts, which transformers writes when it has loaded them."""

    def known(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        return {n: known(value) for n, value in settings.items() if n not in ("dtype", "_name_or_path")}

    return known(json.loads((folder / "config.json").read_text()))


def save(model: Any, folder: Path, source: Path) -> Path:
    save_policy(model, folder, tokenizer_source=str(source), chat=load_chat(str(source), ChatSettings()))
    return folder


@pytest.mark.parametrize("family", CELLS)
def test_padded_and_packed_rows_have_the_values_and_gradients_of_rows_alone(family: str, tmp_path: Path) -> None:
    folder = save_family(FAMILIES[family](), tmp_path)
    expected = plain(folder)
    padded, _ = ours(load_policy(str(folder)), share_prompts=False)
    assert_same(padded, expected)
    # In training mode, so that randomness shows.
    again, reason = ours(load_policy(str(folder)).train(), share_prompts=True)
    assert_same(again, padded)
    if family in PADDED:
        assert reason is not None and PADDED[family] in reason
    else:
        assert reason is None


@pytest.mark.parametrize("family", CELLS)
def test_a_saved_family_is_the_model_that_it_was(family: str, tmp_path: Path) -> None:
    start = save_family(FAMILIES[family](), tmp_path / "start")
    model = load_policy(str(start))
    before, _ = ours(model, share_prompts=False)
    new = save(model, tmp_path / "new", start)
    weights, again = tensors(start), tensors(new)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert settings_of(new) == settings_of(start)
    assert torch.equal(ours(load_policy(str(new)), share_prompts=False)[0].logps, before.logps)


@pytest.mark.parametrize("family", CELLS)
def test_an_adapter_trains_is_merged_and_comes_back(family: str, tmp_path: Path) -> None:
    start = save_family(FAMILIES[family](), tmp_path / "start")
    adapted = add_adapter(load_policy(str(start)), Lora(rank=2), seed=0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert not any(IMAGES.search(name) for name in trained)
    before, _ = ours(adapted, share_prompts=True)
    lifts = {name for name in trained if "lora_B" in name}
    assert lifts <= {name for name, gradient in before.gradients.items() if gradient.any()}
    optimiser = torch.optim.SGD(trained.values(), lr=1.0, maximize=True)
    for _ in range(2):
        torch.nn.utils.clip_grad_norm_(trained.values(), 0.3)
        optimiser.step()
        values, _ = ours(adapted, share_prompts=True)
    assert values.logps.mean() > before.logps.mean()
    new = save(adapted, tmp_path / "new", start)
    assert tensors(new).keys() == tensors(start).keys()
    merged = ours(load_policy(str(new)), share_prompts=False)[0].logps
    torch.testing.assert_close(merged, values.logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["deepseek v3", "llama 4 with images", "llama, YaRN", "phi 3"])
def test_weights_rounded_when_they_are_saved_give_the_values_of_those_that_are_loaded(
    family: str, tmp_path: Path
) -> None:
    start, new = save_family(FAMILIES[family](), tmp_path / "start"), tmp_path / "new"
    chat = load_chat(str(start), ChatSettings())
    rounded = save_policy(load_policy(str(start)), new, tokenizer_source=str(start), chat=chat, dtype="bfloat16")
    loaded = load_policy(str(new), held=WeightFormat("bfloat16"))
    assert {n: p.dtype for n, p in rounded.named_parameters()} == {n: p.dtype for n, p in loaded.named_parameters()}
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(rounded.buffers(), loaded.buffers(), strict=True))
    found, expected = (ours(model, share_prompts=False)[0] for model in (rounded, loaded))
    assert torch.equal(found.logps, expected.logps)


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_of_an_image_text_family_what_reads_images_is_frozen(family: str, tmp_path: Path) -> None:
    model = load_policy(str(save_family(FAMILIES[family](), tmp_path)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if IMAGES.search(name)}
    assert frozen


def test_words_are_those_of_the_tokenizer() -> None:
    assert all(settings().get_text_config().vocab_size == WORDS for settings in FAMILIES.values())
