"""Checks of model folders by file name and config.json. Loads no weights."""

import sys
from pathlib import Path

from pipeline.errors import UserError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def check_folder(path: Path, field: str) -> None:
    """Raise ``UserError`` for a folder that is missing or lacks config or weights; accept hub names."""
    if not path.exists():
        # A hub name is `owner/model`; if there is a folder `owner` here, it is more likely a typo.
        if path.is_absolute() or str(path).startswith((".", "~")) or len(path.parts) != 2 or path.parent.is_dir():
            raise UserError(f"{field}: {path}: no such model folder")
        print(f"{field}: {path}: no such folder here; using it as a hub name", file=sys.stderr)
        return
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(f"{field}: {path}: an adapter (LoRA), not a whole model; {_base(path)}")
    if not (path / "config.json").is_file():
        raise UserError(f"{field}: {path}: no config.json in this model folder")
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        raise UserError(f"{field}: {path}: no safetensors weights in this model folder (other formats are not read)")


def check_policy_folder(path: Path, field: str, longest: int, *, trust_remote_code: bool) -> None:
    """Raise ``UserError`` as ``check_folder`` does, or if no exact language model can be loaded from there.

    ``longest``: tokens of the longest prompt and response that it will read.
    """
    check_folder(path, field)
    from pipeline.models.ordinary_folder import is_ordinary_model

    if path.exists() and not is_ordinary_model(path):
        from pipeline.models.architectures import require_language_model

        require_language_model(str(path), field, longest, trust_remote_code=trust_remote_code)


def check_tokenizer_files(path: Path, field: str) -> None:
    """Raise ``UserError`` for a folder without any tokenizer file."""
    from pipeline.models.foreign import TOKENIZER_FILES

    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{field}: {path}: no tokenizer files in this model folder")


def _base(path: Path) -> str:
    """Say how to make a whole model of the adapter in ``path``."""
    from pipeline.models.foreign import model_settings

    base = model_settings(path / "adapter_config.json").get("base_model_name_or_path")
    onto = repr(base)[:200] if isinstance(base, str) and base else "the model that it was trained on"
    return f"merge it into {onto} first (peft: model.merge_and_unload()) and name the merged folder"
