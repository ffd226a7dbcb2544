"""Layers that processes cannot share are named before weights are loaded."""

from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from flows.preflight.context_parallel import check_context_parallel
from pipeline.config import RunConfig
from pipeline.errors import UserError
from tests.support.tiny_families import LOCAL, PLAIN, WINDOW


def config_of(folder: Path, settings: Any, processes: int) -> RunConfig:
    settings.save_pretrained(folder)
    plain = {"name": "t", "mode": "offline", "policy": {"path": str(folder)}, "pairs": {"path": "q"}}
    return RunConfig.model_validate({**plain, "training": {"context_parallel": processes}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (hf.Lfm2Config(**PLAIN, layer_types=["conv", "full_attention"]), "layer 0 mixes neighbouring tokens by a conv"),
        (hf.MixtralConfig(**PLAIN, **LOCAL), "a mixture of experts; allowed: 1"),
    ],
    ids=["convolution", "experts"],
)
def test_what_cannot_be_divided_is_refused(settings: Any, words: str, tmp_path: Path) -> None:
    told = rf"^training\.context_parallel: 2, but policy\.path: {tmp_path}: .*{words}"
    with pytest.raises(UserError, match=told):
        check_context_parallel(config_of(tmp_path, settings, 2))
    check_context_parallel(config_of(tmp_path, settings, 1))


def test_windows_are_exact(tmp_path: Path) -> None:
    check_context_parallel(config_of(tmp_path, hf.Qwen3Config(**PLAIN, **WINDOW, use_sliding_window=True), 4))
