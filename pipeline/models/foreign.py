"""A model folder's tokenizer and settings, whoever wrote them: read, or refused with a message. Torch-free."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.models.loading.ordinary_folder import tokenizer_class

# A tokenizer folder has at least one of these files (otherwise transformers would build an empty tokenizer).
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside, in foreign code or over foreign files, into ``UserError``: ``what``: reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error
    except BaseException as error:
        # Rust's panics, such as over an id of 2^63, are no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {_reason(error)}") from None


def load_tokenizer(path: str, where: str = "", **options: Any) -> Any:
    """Load the tokenizer of the model folder (or hub name) ``path``; ``options`` go to transformers.

    Raises:
        UserError: no tokenizer files there, or a tokenizer that cannot be read; the message begins with ``where``.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{where}{path}: no tokenizer files in this model folder (such as tokenizer.json)")
    if folder.is_absolute() and not folder.is_dir():
        raise UserError(f"{where}{path}: no such model folder")
    with refused(f"{where}{path}: cannot read the tokenizer"):
        tokenizer = _loader(path, options).from_pretrained(path, **options)
        # Odd settings show only in use.
        tokenizer("a", add_special_tokens=True, split_special_tokens=False)
        for number in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            if number is not None and not isinstance(number, int):
                raise ValueError(f"a special token has the id {number!r}")
    return tokenizer


def _loader(path: str, options: dict[str, Any]) -> Any:
    """Return the class that loads the tokenizer: its own, where that is known without torch."""
    match None if options.get("trust_remote_code") else tokenizer_class(path):
        case "TokenizersBackend":
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
        case "Qwen2Tokenizer":
            from transformers import Qwen2Tokenizer

            return Qwen2Tokenizer
        case "GPT2Tokenizer":
            from transformers import GPT2Tokenizer

            return GPT2Tokenizer
        case "GemmaTokenizer":
            from transformers import GemmaTokenizer

            return GemmaTokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer


def backend_of(tokenizer: Any) -> Any | None:
    """Return the tokenizer of the package tokenizers, if a call of ``tokenizer`` does no more than pass texts to it."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    classes = type(tokenizer).__mro__
    own = [vars(one) for one in classes[: classes.index(PreTrainedTokenizerFast)]]
    return (
        None
        if any(name in one for one in own for name in ("__call__", "_encode_plus"))
        else tokenizer.backend_tokenizer
    )


def encoded_by(backend: Any, texts: Sequence[str], literal: bool) -> list[int]:
    """Return the ids of ``texts``, one after the other and with nothing added; ``literal``: see ``Chat._encode``.

    They are those of a call of the tokenizer, which also finds out where in the text each token is.
    """
    backend.encode_special_tokens = literal
    backend.no_truncation()
    backend.no_padding()
    encoded = (backend.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts)
    return list(chain.from_iterable(encoded))


def added_before(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that ``tokenizer`` itself puts before a text."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=added, verbose=False)["input_ids"]) for added in (False, True)
    )
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return tuple(whole[:start])


def model_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder; empty if there is none. Raises ``UserError`` if it holds no JSON object."""
    if not file.is_file():
        return {}
    with refused(f"{file}: cannot be read"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"must hold a JSON object, not {type(found).__name__}")
    return found


def model_numbers(file: Path, *names: str) -> list[int]:
    """Return the whole numbers under ``names`` in a JSON file of a model folder, in its part for text if it has one.

    A list gives each of its numbers; a name that is absent or null gives none.

    Raises:
        UserError: something else than numbers from 0 to 2^31 under a name.
    """
    plain = model_settings(file)
    text = plain.get("text_config")
    settings = {**plain, **text} if isinstance(text, dict) else plain
    found: list[int] = []
    for name in names:
        value = settings.get(name)
        # Some write -1 for none.
        given = value if isinstance(value, list) else [] if value in (None, -1) else [value]
        for number in given:
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
                raise UserError(f"{file}: {name}: {repr(number)[:60]} is not a whole number from 0 to 2^31")
        found += given
    return found


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """Return where the hub's local cache has the model ``name`` with its tokenizer; None if it has not. Asks no hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return folder if (folder / "tokenizer_config.json").is_file() else None


def writes_date(folder: Path) -> bool:
    """Whether the chat template of a model folder writes the day on which it is rendered."""
    files = [folder / "tokenizer_config.json", folder / "chat_template.json", *folder.glob("**/*.jinja")]
    return any(b"strftime_now" in file.read_bytes() for file in files if file.is_file())


def model_end_ids(folder: Path) -> tuple[int, ...]:
    """``eos_token_id`` of the folder's generation_config.json and config.json, in that order."""
    files = (folder / "generation_config.json", folder / "config.json")
    return tuple(dict.fromkeys(number for file in files for number in model_numbers(file, "eos_token_id")))


def embedding_rows(folder: Path) -> int | None:
    """Return how many tokens the model folder has embeddings for; None if its config.json does not say."""
    return min(model_numbers(folder / "config.json", "vocab_size"), default=None)


def _reason(error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0][:300]
    return said if isinstance(error, OSError | ValueError) and said else f"{type(error).__name__}: {said}".rstrip(": ")
