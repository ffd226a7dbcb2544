"""Folders that hold no causal language model are refused by what their config says, before weights are looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from flows.preflight.model_folders import check_policy_folder
from pipeline.errors import UserError
from pipeline.models.loading.language_model import require_causal, why_not_causal
from pipeline.models.policy import load_policy
from tests.support.tiny_families import FAMILIES, FEW, PLAIN, save_family

ALLOWED = "allowed are decoder-only models of AutoModelForCausalLM and AutoModelForImageTextToText"


def folder_of(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt type": ({"model_type": "lama"}, "'lama', which transformers .* does not know; did you mean 'llama'"),
    "a type that is no text": ({"model_type": ["llama"]}, "which transformers .* does not know"),
    "an encoder": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        r"both directions \(is_decoder: false\)",
    ),
    "another encoder": ({"model_type": "xlm-roberta"}, r"'xlm-roberta', which reads text in both directions"),
    "encoder and decoder": ({"model_type": "bart"}, r"with a decoder of its own \(is_encoder_decoder: true\)"),
    "T5": ({"model_type": "t5"}, "'t5', which transformers cannot load as a language model"),
    "permuted text": ({"model_type": "xlnet"}, "which does not read text from left to right"),
    "denoised text": ({"model_type": "diffusion_gemma"}, "which does not read text from left to right"),
    "XLM": ({"model_type": "xlm"}, "which does not read text from left to right"),
    "images alone": ({"model_type": "clip"}, "'clip', which transformers cannot load as a language model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_causal_language_model_is_refused_by_its_config(kind: str, tmp_path: Path) -> None:
    settings, message = REFUSED[kind]
    with pytest.raises(UserError, match=rf"^policy\.path: .*: its config\.json has model_type .*{message}.*{ALLOWED}$"):
        check_policy_folder(folder_of(tmp_path, settings), "policy.path", 64, trust_remote_code=False)


def test_a_model_of_its_own_code_is_refused_unless_that_code_may_run(tmp_path: Path) -> None:
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    folder = folder_of(tmp_path, {"model_type": "own", "auto_map": code})
    message = r"'own', which only code in that folder can read; .*policy\.trust_remote_code=true, which runs that code"
    with pytest.raises(UserError, match=message):
        check_policy_folder(folder, "training.references", 64, trust_remote_code=False)
    (folder / "configuration_own.py").write_text(OWN)
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    save_file({"inner.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    check_policy_folder(folder, "policy.path", 64, trust_remote_code=True)
    save_file({"outer.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lack 1 tensor of .*\n  inner\.weight"):
        check_policy_folder(folder, "policy.path", 64, trust_remote_code=True)


OWN = """
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""
OWN_MODEL = """
from torch import nn
from transformers import PreTrainedModel
from .configuration_own import OwnConfig
class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.inner = nn.Linear(2, 2, bias=False)
        self.post_init()
"""


def test_a_config_without_a_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"policy\.path: .*: its config\.json has no model_type; {ALLOWED}"):
        check_policy_folder(folder_of(tmp_path, {}), "policy.path", 64, trust_remote_code=False)


def test_a_diffusion_pipeline_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(
        UserError, match=r"a diffusion pipeline \(model_index\.json\), .*allowed are folders with the config"
    ):
        check_policy_folder(tmp_path, "policy.path", 64, trust_remote_code=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_taken_for_another_kind(family: str) -> None:
    assert why_not_causal(FAMILIES[family]()) is None


def test_a_key_that_the_family_never_reads_refuses_nothing() -> None:
    assert why_not_causal(hf.LlamaConfig(is_decoder=False)) is None
    assert why_not_causal(hf.BertConfig(is_decoder=False)) is not None


ENCODERS: dict[str, Any] = {
    "bert": hf.BertConfig(**FEW, intermediate_size=32, num_attention_heads=4),
    "roberta": hf.RobertaConfig(**FEW, intermediate_size=32, num_attention_heads=4),
    "xlnet": hf.XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=4, d_inner=32),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_config_tells_what_the_values_tell(kind: str, tmp_path: Path) -> None:
    settings = ENCODERS[kind]
    assert why_not_causal(settings) is not None
    folder = save_family(settings, tmp_path)
    with pytest.raises(UserError, match="is not a causal language model: what it says of a token depends on later"):
        load_policy(str(folder))


def test_a_decoder_among_encoders_is_a_language_model(tmp_path: Path) -> None:
    settings = hf.BertConfig(**FEW, intermediate_size=32, num_attention_heads=4, is_decoder=True)
    folder = save_family(settings, tmp_path)
    check_policy_folder(folder, "policy.path", 64, trust_remote_code=False)
    require_causal(load_policy(str(folder)), "x")


def test_a_model_whose_code_looks_ahead_is_refused_when_it_is_loaded() -> None:
    model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**PLAIN, initializer_range=0.2)).eval()
    require_causal(model, "x")
    whole = model.forward

    def ahead(**given: Any) -> Any:
        found = whole(**given)
        found.logits = found.logits + found.logits.mean(1, keepdim=True)
        return found

    model.forward = ahead
    with pytest.raises(UserError, match=r"^x: LlamaForCausalLM is not a causal language model"):
        require_causal(model, "x")
