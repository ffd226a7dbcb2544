"""Tensors that a folder lacks, or has too many of, are told from names and shapes alone, as loading would tell them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from flows.preflight.model_folders import check_policy_folder
from pipeline.errors import UserError
from pipeline.models.loading import language_model
from pipeline.models.loading.ordinary_tensors import has_ordinary_tensors, ordinary_tensors
from pipeline.models.loading.weight_files import parameters_of, tensor_shapes
from pipeline.models.policy import load_policy
from tests.support.tiny_families import FAMILIES, HEADS, PLAIN, save_family

Tensors = dict[str, Tensor]
USUAL = ("deepseek v3", "gemma 3 with images", "gpt-2", "gpt-oss", "llama", "mixtral", "nemotron-h", "opt, projected")
CELLS = [pytest.param(name, marks=() if name in USUAL else pytest.mark.whole) for name in FAMILIES]


def rewritten(family: str, folder: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> Path:
    """A folder of the family with other tensors, and other settings in its config.json."""
    save_family(FAMILIES[family](), folder)
    file, config = folder / "model.safetensors", folder / "config.json"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def check(folder: Path) -> None:
    check_policy_folder(folder, "policy.path", 64, trust_remote_code=False)


def said(folder: Path, look: Callable[[Path], object]) -> str:
    with pytest.raises(UserError) as error:
        look(folder)
    return str(error.value).removeprefix("policy.path: ")


@pytest.mark.parametrize("family", CELLS)
def test_of_every_family_a_sound_folder_passes_and_a_lost_tensor_is_found(family: str, tmp_path: Path) -> None:
    folder = save_family(FAMILIES[family](), tmp_path)
    check(folder)
    weights = load_file(folder / "model.safetensors")
    # Neither tied to another one nor one of several that are fused, whose loss changes a shape.
    lost = max(name for name in weights if "norm" in name or "ln_" in name)
    save_file({n: t for n, t in weights.items() if n != lost}, folder / "model.safetensors", {"format": "pt"})
    message = said(folder, check)
    assert re.match(
        rf"{re.escape(str(folder))}: the weights lack 1 tensor of the model of its config\.json:\n", message
    )
    assert message == said(folder, lambda place: load_policy(str(place)))


FAULTS: dict[str, tuple[str, Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "several missing": (
        "llama",
        lambda found: {name: t for name, t in found.items() if "layers.1.mlp" not in name},
        {},
        r"the weights lack 3 tensors .*\n  model\.layers\.1\.mlp\.down_proj\.weight\n",
    ),
    "one too many": (
        "llama",
        lambda found: {**found, "model.layers.7.own.weight": torch.zeros(3)},
        {},
        r"hold 1 tensor that the model of its config\.json does not have, .* lost:\n  model\.layers\.7\.own\.weight",
    ),
    "another shape": (
        "llama",
        lambda found: {**found, "lm_head.weight": torch.zeros(7, 32)},
        {},
        r"hold 1 tensor of another shape .*\n  lm_head\.weight: \(7, 32\) in the weights, \(\d+, 32\) by config\.json",
    ),
    "another config": (
        "qwen 3 moe",
        lambda found: found,
        {"num_hidden_layers": 1},
        r"hold \d+ tensors that the model .*\n  model\.layers\.1\.",
    ),
    "an expert missing": (
        "mixtral",
        lambda found: {name: t for name, t in found.items() if "experts.1." not in name},
        {},
        r"hold 4 tensors of another shape .*experts\.down_proj: \(3, 32, 32\) in the weights, \(4, 32, 32\)",
    ),
    "a head missing": (
        "llama",
        lambda found: {name: t for name, t in found.items() if name != "lm_head.weight"},
        {},
        r"the weights lack 1 tensor of the model of its config\.json:\n  lm_head\.weight",
    ),
    "a part for images missing": (
        "gemma 3 with images",
        lambda found: {name: t for name, t in found.items() if "multi_modal_projector" not in name},
        {},
        r"the weights lack \d+ tensors .*\n  model\.multi_modal_projector\.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_before_anything_is_loaded_and_in_the_same_words_when_it_is(
    fault: str, tmp_path: Path
) -> None:
    family, change, settings, message = FAULTS[fault]
    folder = rewritten(family, tmp_path, change, **settings)
    assert re.search(message, said(folder, check), re.DOTALL)
    assert said(folder, check) == said(folder, lambda place: load_policy(str(place)))


def masks(name: str, *kinds: str) -> Tensors:
    return {name.format(layer, kind): torch.zeros(1, 1, 4, 4) for layer in (0, 1) for kind in kinds}


# As hub folders have them.
SOUND: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "frequencies": ("llama", lambda found: found | masks("model.layers.{}.self_attn.rotary_emb.{}", "inv_freq")),
    "a head beside tying": (
        "llama, tied",
        lambda found: {**found, "lm_head.weight": found["model.embed_tokens.weight"]},
    ),
    "the first GPT-2": (
        "gpt-2",
        lambda found: {
            **{name.removeprefix("transformer."): tensor for name, tensor in found.items()},
            **masks("h.{}.attn.{}", "bias", "masked_bias"),
        },
    ),
    "Pythia": (
        "gpt-neox",
        lambda found: found | masks("gpt_neox.layers.{}.attention.{}", "bias", "masked_bias", "rotary_emb.inv_freq"),
    ),
    "BLOOM without its head": (
        "bloom",
        lambda found: {name.removeprefix("transformer."): tensor for name, tensor in found.items()},
    ),
    "OPT's old names": (
        "opt",
        lambda found: {name.replace("model.decoder.", "decoder."): tensor for name, tensor in found.items()},
    ),
    "heads for further tokens": ("qwen 3.5", lambda found: {**found, "mtp.fc.weight": torch.zeros(3, 3)}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_old_names_and_what_transformers_computes_are_no_faults(kind: str, tmp_path: Path) -> None:
    family, change = SOUND[kind]
    folder = rewritten(family, tmp_path, lambda found: {n: t.clone() for n, t in change(found).items()})
    check(folder)
    load_policy(str(folder))


def test_quantised_weights_are_left_to_their_quantiser(tmp_path: Path) -> None:
    folder = rewritten(
        "phi 3",
        tmp_path,
        lambda found: {**found, "model.layers.0.mlp.down_proj.weight.absmax": torch.zeros(3)},
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    check(folder)


ORDINARY: dict[str, Any] = {
    "llama": hf.LlamaConfig(**HEADS),
    "llama, biased": hf.LlamaConfig(**PLAIN, attention_bias=True, mlp_bias=True),
    "llama, tied": hf.LlamaConfig(**HEADS, tie_word_embeddings=True),
    "olmo 2": hf.Olmo2Config(**PLAIN),
    "qwen 2": hf.Qwen2Config(**PLAIN),
    "qwen 3": hf.Qwen3Config(**HEADS),
    "qwen 3, biased": hf.Qwen3Config(**{**HEADS, "head_dim": 16}, attention_bias=True),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_the_tensors_of_ordinary_models_are_those_of_transformers(kind: str) -> None:
    settings = ORDINARY[kind]
    with torch.device("meta"):
        made = hf.AutoModelForCausalLM.from_config(settings)
    theirs = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    plain = json.loads(settings.to_json_string(use_diff=False))
    assert ordinary_tensors(plain) == theirs
    tied = {} if plain["tie_word_embeddings"] else {"lm_head.weight"}
    for name in theirs:
        less = {other: shape for other, shape in theirs.items() if other != name}
        assert has_ordinary_tensors(plain, less) == (name == "lm_head.weight" and not tied)
        assert not has_ordinary_tensors(plain, {**theirs, name: (*theirs[name], 1)})
    assert not has_ordinary_tensors(plain, {**theirs, "more.weight": (1,)})


def test_of_other_models_and_without_the_sizes_nothing_is_said() -> None:
    plain = json.loads(hf.LlamaConfig(**HEADS).to_json_string(use_diff=False))
    assert ordinary_tensors({**plain, "model_type": "gemma2"}) is None
    assert ordinary_tensors({**plain, "num_key_value_heads": None}) is None


def test_a_whole_ordinary_folder_is_not_shown_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(language_model, "require_language_model", lambda path, *_, **__: asked.append(path))
    check(save_family(hf.LlamaConfig(**HEADS), tmp_path / "whole"))
    assert asked == []
    check(rewritten("llama", tmp_path / "not", lambda found: {**found, "more.weight": torch.zeros(1)}))
    assert asked == [str(tmp_path / "not")]


def sharded(folder: Path) -> Path:
    save_family(FAMILIES["llama"](), folder)
    model: Any = hf.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def test_shards_that_the_index_names_must_be_there_and_whole(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    check(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-16])
    assert f"{shards[1]}: cannot be read as safetensors, or is cut short" in said(folder, check)
    shards[1].unlink()
    message = said(folder, check)
    assert (
        f"1 of the {len(shards)} files that model.safetensors.index.json names are not there:\n  {shards[1].name}"
        in message
    )
    shards[1].write_bytes(shards[0].read_bytes())
    assert re.search(
        r"model\.safetensors\.index\.json names \d+ tensors that are not there:\n  .* in model-", said(folder, check)
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "JSON object"),
        ("{}", "weight_map must map names of tensors to names of files"),
        ('{"weight_map": {"a": 1}}', "weight_map must map names of tensors to names of files"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "is not the name of a file in this folder"),
    ],
)
def test_an_index_that_is_none_is_refused(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        tensor_shapes(tmp_path)


def test_weights_of_another_name_are_not_taken_for_the_model_s(tmp_path: Path) -> None:
    folder = save_family(FAMILIES["llama"](), tmp_path)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "no model.safetensors and no model.safetensors.index.json" in said(folder, check)


def test_weights_that_another_program_reads_are_not_counted(tmp_path: Path) -> None:
    save_family(FAMILIES["llama"](), tmp_path)
    once = parameters_of(tmp_path)
    assert once == sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    assert parameters_of(tmp_path) == once
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    named = dict.fromkeys(load_file(tmp_path / "model-1.safetensors"), "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert parameters_of(tmp_path) == once
