"""What is said of a model folder without torch is what transformers says, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import UserError
from pipeline.models.foreign import load_tokenizer
from pipeline.models.loading import ordinary_folder as chosen
from pipeline.models.loading.language_model import require_language_model
from pipeline.models.loading.ordinary_folder import (
    KNOWN_TRANSFORMERS,
    TOKENIZER_CLASSES,
    is_ordinary_model,
    tokenizer_class,
)
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def with_tensors(folder: str) -> str:
    """The folder with all tensors of its config's model, all 0."""
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    save_file({name: torch.zeros(t.shape) for name, t in made.state_dict().items()}, f"{folder}/model.safetensors")
    return folder


def changed(model: Path, folder: Path, settings: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> str:
    """A folder like ``model``, without weights and with other settings; what is None is left out."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text((model / "tokenizer.json").read_text())
    (folder / "chat_template.jinja").write_text((model / "chat_template.jinja").read_text())
    for name, new in (("config.json", settings), ("tokenizer_config.json", tokenizer or {})):
        plain = json.loads((model / name).read_text()) | new
        (folder / name).write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))
    return str(folder)


@pytest.mark.parametrize("end", ["", "Fast"])
@pytest.mark.parametrize(("kind", "named"), TOKENIZER_CLASSES)
def test_the_class_is_the_one_that_transformers_chooses(
    kind: str, named: str, end: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = {"unk_token": "<s>"}  # GPT-2's and Gemma's own is not in the tiny vocabulary
    folder = changed(model, tmp_path, {"model_type": kind}, {"tokenizer_class": named + end, **unknown})
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer_class(folder) == TOKENIZER_CLASSES[kind, named] == type(theirs).__name__
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    ours = load_tokenizer(folder)
    assert type(ours) is type(theirs) and ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.chat_template == theirs.chat_template and ours.special_tokens_map == theirs.special_tokens_map
    assert ours("the <s> cat<|end|>").input_ids == theirs("the <s> cat<|end|>").input_ids


def test_the_table_is_of_the_installed_version() -> None:
    assert transformers.__version__.startswith(KNOWN_TRANSFORMERS)


@pytest.mark.parametrize(
    ("settings", "tokenizer"),
    [
        ({"model_type": "mistral"}, {}),
        ({"model_type": "qwen2"}, {}),  # transformers corrects this folder's class
        ({"model_type": None}, {}),
        ({"hidden_size": "64"}, {}),
        ({"num_attention_heads": 7}, {}),
        ({"eos_token_id": "2"}, {}),
        ({"eos_token_id": [2, 300]}, {}),
        ({"dtype": "float63"}, {}),
        ({"layer_types": ["full_attention"]}, {}),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, {}),
        ({"of_its_own": 1}, {}),
        ({}, {"tokenizer_class": None}),
        ({}, {"tokenizer_class": "OwnTokenizer"}),
        ({}, {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}),
    ],
)
def test_of_anything_unusual_transformers_is_asked(
    settings: dict[str, Any], tokenizer: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    assert tokenizer_class(changed(model, tmp_path, {}, {})) == "TokenizersBackend"
    assert tokenizer_class(changed(model, tmp_path, settings, tokenizer)) is None


def test_other_versions_names_and_code_are_asked_about(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(model, tmp_path, {})
    assert tokenizer_class("owner/model") is None
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert tokenizer_class(folder) is None
    folder = changed(model, tmp_path, {})
    monkeypatch.setattr(chosen.importlib.metadata, "version", lambda name: "5.20.0")
    assert tokenizer_class(folder) is None


def test_settings_that_transformers_refuses_stay_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the tokenizer: .*hidden_size"):
        load_tokenizer(changed(model, tmp_path, {"hidden_size": "64"}))


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in TOKENIZER_CLASSES}))
def test_an_ordinary_model_is_an_exact_language_model(kind: str, model: Path, tmp_path: Path) -> None:
    folder = with_tensors(changed(model, tmp_path, {"model_type": kind}))
    assert is_ordinary_model(tmp_path)
    require_language_model(folder, "policy.path", 10**6, trust_remote_code=False)


def test_the_rope_of_llama_3_is_ordinary(model: Path, tmp_path: Path) -> None:
    lengths = {"original_max_position_embeddings": 64, "rope_theta": 1e4}
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **lengths}
    folder = with_tensors(changed(model, tmp_path, {"rope_parameters": rope, "max_position_embeddings": 512}))
    assert is_ordinary_model(tmp_path)
    require_language_model(folder, "policy.path", 10**6, trust_remote_code=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bert"},
        {"hidden_size": "64"},
        {"auto_map": {"AutoModelForCausalLM": "own.Model"}},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "llama3"}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}},
        {"head_dim": 7},
        {"head_dim": None, "hidden_size": 28, "num_attention_heads": 4},
        {"hidden_act": "nonsense"},
    ],
)
def test_any_other_model_is_looked_at(settings: dict[str, Any], model: Path, tmp_path: Path) -> None:
    changed(model, tmp_path, settings)
    assert not is_ordinary_model(tmp_path)
