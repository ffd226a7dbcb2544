"""Settings of foreign adapters: each of its type, computed here or refused in words; bases that are the same or not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.models.weights.adapter_base import require_same_model
from pipeline.models.weights.adapter_folder import adapter_settings, copy_adapter, require_base, require_shape_asked
from pipeline.models.weights.lora import require_fitting
from tests.support.tiny_adapter import save_tiny_adapter
from tests.support.tiny_model import save_tiny_model

MISSING = object()
WRONG: dict[str, tuple[Any, ...]] = {
    "r": (None, MISSING, "8", 8.0, True, 0, -1, [8], 10**400),
    "lora_alpha": (None, MISSING, "16", True, 0, -1, [1], float("nan"), float("inf")),
    "lora_dropout": ("0.1", True, 1, -0.1, [], float("nan")),
    "target_modules": ("", "(", "a" * 1001, 3, {}, [1], [None], [""], True),
    "exclude_modules": ("(", 3, {}, [1]),
    "use_rslora": ("yes", 1, [True], {}),
    "use_dora": ("no", 0.5, [True]),
    "fan_in_fan_out": ("no", 2),
    "ensure_weight_tying": ("no", 2),
    "modules_to_save": ("lm_head", {}, [1], 5),
    "target_parameters": ("experts.down_proj", {}, [1]),
    "rank_pattern": ([], "x", {"q_proj": "8"}, {"q_proj": 0}, {"q_proj": None}, {"(": 4}),
    "alpha_pattern": ([], "x", {"q_proj": "8"}, {"q_proj": -1}, {"(": 4}),
    "layers_to_transform": ("0", {}, [None], [-1], True),
    "layers_pattern": ("(", 4, [1], "layers"),
    "bias": ("all", "lora_only", None, [], 1),
    "init_lora_weights": ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "mica", None, 1, []),
    "peft_type": ("IA3", "lora", None, 3, []),
    "trainable_token_indices": ([1, 2], {"embed_tokens": [1]}),
    "layer_replication": ([[0, 1]],),
    "lora_bias": (True,),
    "use_qalora": (True,),
    "megatron_config": ({"a": 1},),
    "made_up": ("x",),
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    save_tiny_adapter(folder / "adapter", save_tiny_model(folder / "base"), Lora(rank=2))
    return folder


def changed(places: Path, folder: Path, **settings: Any) -> Path:
    copied = shutil.copytree(places / "adapter", folder / "adapter")
    plain = {**json.loads((copied / "adapter_config.json").read_text()), **settings}
    kept = {name: value for name, value in plain.items() if value is not MISSING}
    (copied / "adapter_config.json").write_text(json.dumps(kept))
    return copied


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}-{str(v)[:20]}" for n, v in CASES])
def test_a_setting_of_another_type_or_effect_is_refused_by_its_name(
    places: Path, tmp_path: Path, name: str, value: Any
) -> None:
    adapter = changed(places, tmp_path, **{name: value})
    with pytest.raises(UserError, match=rf"^policy\.adapter: .*adapter_config\.json: {name}: ") as told:
        adapter_settings(adapter, "policy.adapter")
    assert any(word in str(told.value) for word in ("allowed", "must be")) and len(str(told.value)) < 700


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(places: Path, tmp_path: Path, text: bytes) -> None:
    adapter = changed(places, tmp_path)
    (adapter / "adapter_config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        require_base(str(adapter), str(places / "base"))


@pytest.mark.parametrize("named", [None, 3, [], "", "a\0b", "x" * 5000, "é\ud800"])
def test_a_base_that_is_no_name(places: Path, tmp_path: Path, named: Any) -> None:
    adapter = changed(places, tmp_path, base_model_name_or_path=named)
    with pytest.raises(UserError, match=r"must name the model under the adapter|an adapter of"):
        require_base(str(adapter), str(places / "base"))


def test_what_only_made_the_first_weights_decides_nothing(places: Path, tmp_path: Path) -> None:
    adapter = changed(
        places, tmp_path, init_lora_weights="eva", eva_config={"rho": 2.0}, loftq_config={"loftq_bits": 4}
    )
    require_fitting(str(adapter), str(places / "base"))
    copy_adapter(str(adapter), tmp_path, str(places / "base"))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "eva_config" not in written and written["r"] == 2


def test_targets_are_compared_as_layers(places: Path) -> None:
    adapter = places / "adapter"
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    require_shape_asked(adapter, Lora(rank=2, target_modules=every))
    for targets in (every[:-1], (*every, "lm_head"), ".*_proj"):
        with pytest.raises(UserError, match=r"^training\.lora\.target_modules: .*allowed: \['down_proj'"):
            require_shape_asked(adapter, Lora(rank=2, target_modules=targets))


SAME = [
    ("meta-llama/Llama-3-8B", "/x/Llama-3-8B"), ("/old/gpt2", "gpt2"), ("/m/Qwen2.5-0.5B", "/n/qwen2.5-0.5b"),
    ("meta-llama/Llama-3-8B", "/c/models--meta-llama--Llama-3-8B/snapshots/abc"), ("Owner/Model-A", "owner/model-a"),
]  # fmt: skip
OTHERS = [
    ("a/policy", "/b/policy"), ("/x/checkpoint-500", "/y/checkpoint-500"), ("/x/merged", "/y/merged"),
    ("/m/final_v2", "/n/final_v2"), ("x/model", "/y/model"), ("/a/500", "/b/500"), ("unsloth/L-8B", "meta/L-8B"),
    ("o/L-8B", "/c/models--meta--L-8B/snapshots/abc"), ("/a/round_000/policy", "/b/round_000/policy"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "base"), SAME)
def test_bases_of_one_name(named: str, base: str) -> None:
    require_same_model("nowhere", named, base, "policy.adapter")


@pytest.mark.parametrize(("named", "base"), OTHERS)
def test_bases_whose_names_say_nothing_or_another_owner(named: str, base: str) -> None:
    with pytest.raises(UserError, match=r"^policy\.adapter: an adapter of .*allowed are adapters of that model"):
        require_same_model("nowhere", named, base, "policy.adapter")
