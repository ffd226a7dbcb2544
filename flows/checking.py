"""``prefloop check`` and the checks that ``run`` makes before it starts anything: config, data, model folder."""

import sys
from pathlib import Path

from flows.stages.data import Tables, load_data
from pipeline.config import ClassifierScorer, PretrainedPolicy, RunConfig
from pipeline.configfile import load_config
from pipeline.types import UserError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def check_config(files: list[Path], settings: list[str]) -> None:
    """Print what the config describes. Raises ``UserError`` for every mistake that can be found without training."""
    config = load_config(files, settings)
    check_model(config)
    tables = load_data(config)
    for line in describe(config, tables):
        print(line)


def check_model(config: RunConfig) -> None:
    """Model folders exist and hold what is read from them; hub names are left to the hub."""
    if isinstance(config.policy, PretrainedPolicy):
        _check_folder(Path(config.policy.path), "policy.path")
        _check_tokenizer(config)
    if isinstance(config.scorer, ClassifierScorer):
        _check_folder(Path(config.scorer.path), "scorer.path")


def describe(config: RunConfig, tables: Tables) -> list[str]:
    """A few lines on what would run."""
    sizes = {name: len(rows) for name, rows in vars(tables).items()}
    lines = [f"{config.name}: {config.mode}, {config.rounds} rounds, seed {config.seed}: config and data are valid"]
    lines += [f"  {name.replace('_', ' ')}: {size}" for name, size in sizes.items() if size]
    if config.mode == "iterative":
        prompts = min(config.prompts_per_round or sizes["prompts"], sizes["prompts"])
        lines.append(f"  a round samples {prompts} prompts x {config.sampling.n} responses")
    return lines


def _check_folder(path: Path, field: str) -> None:
    if not path.exists():
        if path.is_absolute() or str(path).startswith((".", "~")) or len(path.parts) != 2:
            raise UserError(f"{field}: {path}: no such model folder")
        print(f"{field}: {path}: no such folder here; it is taken as a hub name", file=sys.stderr)
        return
    if not (path / "config.json").is_file():
        raise UserError(f"{field}: {path}: no config.json in this model folder")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise UserError(f"{field}: {path}: no safetensors weights in this model folder (other formats are not read)")


def _check_tokenizer(config: RunConfig) -> None:
    from pipeline.chat import load_chat

    assert isinstance(config.policy, PretrainedPolicy)
    if Path(config.policy.path).exists():
        load_chat(config.policy.path, config.chat, config.policy.trust_remote_code)
