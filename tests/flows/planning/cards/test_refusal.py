"""A policy that is sure not to fit on the machine's card is refused before anything is loaded."""

import json
import struct
import sys
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.planning.cards import refusal
from flows.planning.cards.fitting import GB, Card
from flows.planning.cards.refusal import own_card, require_card
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.errors import UserError
from tests.support.places import ROOT
from tests.support.small_config import write_small_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the header of eight billion weights, and none of them."""
    folder = tmp_path / "model"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [8_000, 1_000_000], "data_offsets": [0, 16 * GB]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    return folder


@pytest.fixture
def file(tmp_path: Path, model: Path) -> Path:
    return write_small_config(tmp_path, model)


def settings(file: Path, *given: str) -> RunConfig:
    return load_config([file], [*given])


@pytest.mark.parametrize(
    ("given", "size", "said"),
    [
        (
            (),
            80,
            r"^training: full training of the 8\.00 billion parameters of policy\.path needs "
            r"at least 128\.8 GB on a card, and this machine's has 80\.0 GB; add a section training\.lora",
        ),
        (("training.optimiser=adamw_8bit",), 80, r"needs at least 80\.8 GB"),
        (
            ("training.lora={rank: 8}",),
            16,
            r"^training: an adapter on the 8\.00 billion .* 16\.8 GB .*; set policy\.quantisation: \{bits: 4\}",
        ),
        (
            ("training.lora={rank: 8}", "policy.quantisation={bits: 4}", "sampler={kind: vllm}"),
            18,
            r"^sampler\.gpu_memory_utilization: 0\.85 of 18\.0 GB is 15\.3 GB, .* take 16\.0 GB in 16 bits",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_what_to_change(
    file: Path, given: tuple[str, ...], size: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        require_card(settings(file, *given), Card(size * GB))


def test_what_may_fit_passes(file: Path) -> None:
    require_card(settings(file), Card(141 * GB))
    require_card(settings(file, "training.lora={rank: 8}"), Card(24 * GB))
    four = ("training.lora={rank: 8}", "policy.quantisation={bits: 4}", "sampler={kind: transformers}")
    require_card(settings(file, *four), Card(8 * GB))
    require_card(settings(file, "training.optimiser=adamw_offload"), Card(80 * GB))
    sharded = f"accelerate={ROOT / 'configs/accelerate/fsdp2.yaml'}"
    with pytest.raises(UserError, match=r"at least 16\.8 GB"):
        require_card(settings(file, sharded), Card(16 * GB))
    require_card(settings(file, sharded), Card(24 * GB))


def test_a_run_and_a_check_refuse_before_they_load(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(refusal, "own_card", lambda: Card(24 * GB))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prefloop", "run", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "prefloop: training: full training of the 8.00 billion" in said
    assert "Traceback" not in said and not (tmp_path / "runs").exists()


def test_the_smallest_card_of_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '81920\\n24564\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert own_card() is None
    monkeypatch.setattr(refusal, "has_accelerator", lambda: True)
    assert own_card() == Card(24564 * 1024**2)
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert own_card() is None
