"""Files of a model folder besides its weights and config.json: they go with every policy made from it. Torch-free."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.models.foreign import TOKENIZER_FILES, load_tokenizer

# Files that are read from a model on the hub.
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py")
# The same weights once more, for other programs; a * goes into folders.
UNREAD = ("original/*", "metal/*", "consolidated*")
# By what they are called in transformers' own folders and in those with tokenizers and processors of their own.
_PATTERNS = (
    *TOKENIZER_FILES,
    "*token*.json",
    "*.tiktoken",
    "*.model",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "chat_template*.json",
    "additional_chat_templates/*.jinja",
    "*processor*.json",
    "generation_config.json",
    # Code that tokenizer_config.json or config.json names; run only if the user trusts it.
    "*.py",
)


def companions(folder: Path) -> Iterator[Path]:
    """Yield the paths, relative to ``folder``, of the files of its tokenizer, processors, templates and code."""
    found = {file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()}
    yield from sorted(file.relative_to(folder) for file in found)


def copy_companions(source: str, folder: Path) -> None:
    """Copy the companions of the model folder ``source`` into ``folder``; of a hub name, the tokenizer alone."""
    origin = Path(source)
    folder.mkdir(parents=True, exist_ok=True)
    if not origin.is_dir():
        load_tokenizer(source, trust_remote_code=False).save_pretrained(folder)
        return
    for name in companions(origin):
        if (origin / name).resolve() != (folder / name).resolve():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(origin / name, folder / name)
