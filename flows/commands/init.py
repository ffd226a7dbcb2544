"""``prefloop init``: write a config with comments from a few answers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
import yaml

from pipeline.config import preset_names
from pipeline.errors import UserError, nearest
from pipeline.storage.atomic import write_text

Mode = Literal["iterative", "offline"]
_FILE = "config.yaml"
# Scorers that need no settings of their own.
RULES = ("match", "number", "math", "length", "keywords")

HEAD = """\
# {name}: made by prefloop init. All settings, with ranges and meaning, are in pipeline/config/.
#   prefloop check {file}
#   prefloop run   {file}
name: {name}
mode: {mode}                 # {mode_said}
rounds: {rounds}
policy:
  path: {model}              # a Hugging Face model folder with its tokenizer, or a hub name
{data}held_out:
  prompts: 100               # set aside by content before training, for evaluation; at most
  share: 0.1                 # of the distinct prompts, at most
{scorer}loss:
  preset: {loss}             # prefloop losses lists all, prefloop losses {loss} shows this one
training:
  learning_rate: {rate}      # for full training; for LoRA, ten times as much
  batch_size: 64             # pairs per optimiser step
  checkpoint_every: 50       # steps; the most that a kill can lose
"""
ITERATIVE = """\
prompts:
  path: {data}               # column prompt; also answer, if the scorer compares with one
sampling:
  n: 4                       # responses per prompt
  max_tokens: 512
"""
OFFLINE = """\
pairs:
  path: {data}               # prompt, chosen, rejected; or K responses with rewards; or single responses with a label
"""
SCORER = """\
scorer:
  kind: {kind}               # what labels responses; reward_models/README.md lists the others
"""


@dataclass(frozen=True)
class _Answers:
    """The answers for a config. ``scorer``: a rule, or the folder of a reward model; None for offline mode."""

    mode: Mode
    model: str
    data: str
    scorer: str | None
    loss: str = "dpo"
    rounds: int = 1
    rate: float = 5e-7


def write_config(folder: Path, answers: _Answers) -> Path:
    """Write ``folder/config.yaml``; return its path.

    Raises:
        UserError: the file exists or cannot be written, or an answer is not valid.
    """
    file = folder / _FILE
    if answers.loss not in preset_names():
        raise UserError(f"--loss: no preset is called {answers.loss!r}{nearest(answers.loss, preset_names())}")
    if answers.mode == "iterative" and not answers.scorer:
        raise UserError("--scorer: iterative mode needs one: a rule or the folder of a reward model")
    if file.exists():
        raise UserError(f"{file}: already exists; nothing was changed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, config_text(folder.resolve().name, file, answers))
    except OSError as error:
        raise UserError(f"{file}: cannot write there ({error.strerror})") from None
    return file


def config_text(name: str, file: Path, answers: _Answers) -> str:
    """Return the config as YAML with comments."""
    template = ITERATIVE if answers.mode == "iterative" else OFFLINE
    said = {
        "iterative": "each round samples, labels, pairs and trains; offline trains on existing pairs",
        "offline": "trains on existing pairs; iterative samples and labels each round",
    }
    text = HEAD.format(
        name=_name(name),
        file=file,
        mode=answers.mode,
        mode_said=said[answers.mode],
        rounds=answers.rounds,
        model=_plain(answers.model),
        data=template.format(data=_plain(answers.data)),
        scorer=_scorer(answers.scorer),
        loss=answers.loss,
        rate=f"{answers.rate:.1e}",
    )
    return "\n".join(_aligned(line) for line in text.splitlines()) + "\n"


def _scorer(scorer: str | None) -> str:
    if scorer is None:
        return ""
    if scorer in RULES:
        return SCORER.format(kind=scorer)
    return SCORER.format(kind="classifier") + f"  path: {_plain(scorer)}\n"


def _name(folder: str) -> str:
    """Make a valid run name from a folder's name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in folder).strip("._-")
    return kept.replace("..", "-")[:100] or "run"


def _plain(text: str) -> str:
    """Write ``text`` as a YAML scalar on one line."""
    return str(yaml.safe_dump(text, width=10_000, allow_unicode=True)).removesuffix("\n...\n").strip()


def _aligned(line: str) -> str:
    """Align the comment after a setting, if there is room."""
    setting, mark, said = line.partition(" # ")
    return f"{setting.rstrip():<28} # {said}" if mark and setting.strip() else line


def ask_missing(
    mode: str | None,
    model: str | None,
    data: str | None,
    scorer: str | None,
    loss: str,
    rounds: int,
    rate: float,
) -> _Answers:
    """Take the options, and ask for the rest on a terminal. Raises ``UserError`` without a terminal."""
    mode = mode or _ask("mode", "iterative (sample and label each round) or offline (existing pairs)", "iterative")
    if mode not in ("iterative", "offline"):
        raise UserError(f"--mode: {mode!r}: iterative or offline{nearest(mode, ('iterative', 'offline'))}")
    chosen: Mode = "iterative" if mode == "iterative" else "offline"
    model = model or _ask("model", "model folder, or a hub name")
    data = data or _ask("data", "file of prompts" if mode == "iterative" else "file of pairs")
    if scorer is None and mode == "iterative":
        scorer = _ask("scorer", f"{', '.join(RULES)}, or the folder of a reward model")
    return _Answers(chosen, model, data, scorer, loss, rounds, rate)


def _ask(option: str, said: str, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise UserError(f"--{option}: missing, and there is no terminal to ask on: {said}")
    return str(typer.prompt(said, default=default, err=True))
