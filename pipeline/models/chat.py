"""Conversion of messages to token ids, the only one, for sampler, trainer and data sets.

Knows templates, BOS and end tokens; knows no engine and no loss. Departs from
``apply_chat_template(tokenize=True)`` in three ways: there is exactly one BOS, whatever tokenizer
and template do; a response is tokenised after its prompt, so the prompt's ids are always a prefix
of prompt + response; and an end token is added only where the model (or author) stopped.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from pipeline import config
from pipeline.errors import UserError
from pipeline.types import Message, content_hash

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
_MARK = "prefloopresponse"


class Chat:
    """Converter from messages to prompt ids, from response texts to ids, and from ids to text.

    Attributes:
        end_ids: every id that ends an assistant turn: the tokenizer's EOS, those of the model's
            generation config, the template's end-of-turn token.
        end_id: the one of ``end_ids`` that this chat's format puts after an assistant turn.
        special_ids: every id that does not represent text.
        bos_id: the id before a prompt, if the tokenizer has one.
        template_hash: changes whenever the same messages could give different ids.
    """

    def __init__(self, tokenizer: Any, settings: config.ChatSettings, model_end_ids: Sequence[int] = ()) -> None:
        """``model_end_ids``: the end tokens of the model's own config files.

        Raises:
            UserError: ``template: model`` without a chat template, a template that cannot render
                one user and one assistant turn, or no end token anywhere.
        """
        self._tokenizer = tokenizer
        self._settings = settings
        self.uses_template = self._choose_template()
        self._lead, turn_end = self._probe_template() if self.uses_template else ("", None)
        known = [i for i in (turn_end, tokenizer.eos_token_id, *model_end_ids) if i is not None]
        if not known:
            raise UserError(f"{_name(tokenizer)}: neither tokenizer nor template has an end token (eos_token)")
        self.end_id: int = known[0]
        self.end_ids: frozenset[int] = frozenset(known)
        self.special_ids: frozenset[int] = frozenset(tokenizer.all_special_ids) | self.end_ids
        self.bos_id: int | None = tokenizer.bos_token_id
        self._special_texts = {str(tokenizer.convert_ids_to_tokens(i)): i for i in self.special_ids}
        self._special_pattern = re.compile("|".join(map(re.escape, sorted(self._special_texts, key=len, reverse=True))))
        self.vocab_size: int = len(tokenizer)
        self.template_hash: str = content_hash(
            [
                self.uses_template and str(tokenizer.chat_template),
                self._lead,
                self.end_id,
                sorted(self.end_ids),
                tokenizer.bos_token_id,
                content_hash(sorted(tokenizer.get_vocab().items())),
            ]
        )

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids up to the start of the assistant's turn, with one BOS in front if the tokenizer has one.

        Raises:
            UserError: the template refuses these messages (an unknown role order, say).
        """
        if self.uses_template:
            ids = self._encode(self._render(messages, generation_prompt=True))
        else:
            ids = self._encode("\n".join(m.content for m in messages), literal=True)
        return self._with_one_bos(ids)

    def response_ids(self, messages: Sequence[Message], text: str, finished: bool = True) -> tuple[int, ...]:
        """Ids of ``text`` as the assistant's answer to ``messages``, with a final end token if ``finished``.

        Special tokens spelled out in ``text`` stay text. Ids beyond ``max_response_tokens`` are cut,
        and the end token with them.
        """
        tail, answer = self._prompt_tail(messages), self._lead + text
        before = self._encode(tail, literal=True)
        joined = self._encode(tail + answer, literal=True)
        # If the tokenizer merges across the border, the prefix differs; then the answer is encoded by itself.
        together = joined[: len(before)] == before
        content = joined[len(before) :] if together else self._encode(answer, literal=True)
        ids = content + ([self.end_id] if finished else [])
        return tuple(ids[: self._settings.max_response_tokens])

    def continues(self, messages: Sequence[Message], text: str) -> bool:
        """Whether the ids of prompt and response, rendered together, begin with the prompt's ids.

        False if the template renders an answered prompt differently, or if the tokenizer merges the prompt's last
        characters with the response's first.
        """
        if self.uses_template:
            whole = self._encode(self._render([*messages, Message("assistant", text)], generation_prompt=False))
        else:
            whole = self._encode("\n".join(m.content for m in messages) + text, literal=True)
        prompt = self.prompt_ids(messages)
        return self._with_one_bos(whole)[: len(prompt)] == prompt

    def spelled(self, text: str) -> list[tuple[str, int]]:
        """Special tokens that ``text`` spells out, with their ids."""
        return [(token, self._special_texts[token]) for token in self._special_pattern.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _choose_template(self) -> bool:
        has_one = bool(self._tokenizer.chat_template)
        if self._settings.template == "model" and not has_one:
            raise UserError(f"chat.template: model, but {_name(self._tokenizer)} has none; use plain or auto")
        return has_one and self._settings.template != "plain"

    def _probe_template(self) -> tuple[str, int | None]:
        """Return the template's text before an assistant's text, and its special token after it."""
        turn = [Message("user", "x")]
        prompt = self._render(turn, generation_prompt=True)
        whole = self._render([*turn, Message("assistant", _MARK)], generation_prompt=False)
        before, mark, after = whole.partition(_MARK)
        if not mark:
            raise UserError(f"{_name(self._tokenizer)}: the chat template drops the assistant's text")
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        known = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        special = [i for i in self._encode(after) if i in known]
        return lead, (special[0] if special else None)

    def _prompt_tail(self, messages: Sequence[Message]) -> str:
        """The prompt's text after its last special token, on which the response's first token may depend."""
        if not self.uses_template:
            return "\n".join(m.content for m in messages)
        text = self._render(messages, generation_prompt=True)
        specials = [token.content for token in self._tokenizer.added_tokens_decoder.values()]
        return text[max((text.rfind(s) + len(s) for s in specials if s in text), default=0) :]

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(m.role for m in messages)
            raise UserError(f"{_name(self._tokenizer)}: its chat template refuses turns {roles}: {error}") from error
        return str(text)

    def _encode(self, text: str, literal: bool = False) -> list[int]:
        """Ids of ``text``, nothing added; ``literal``: special tokens spelled out in it stay text."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
        return list(encoded["input_ids"])

    def _with_one_bos(self, ids: list[int]) -> tuple[int, ...]:
        bos = self._tokenizer.bos_token_id
        if bos is None:
            return tuple(ids)
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        return (bos, *ids[start:])


def load_chat(path: str, settings: config.ChatSettings, trust_remote_code: bool = False) -> Chat:
    """The chat of the model folder (or hub name) ``path``.

    Raises:
        UserError: no tokenizer files there, or a tokenizer that cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{path}: no tokenizer files in this model folder (such as tokenizer.json)")
    if folder.is_absolute() and not folder.is_dir():
        raise UserError(f"{path}: no such model folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot read the tokenizer: {str(error).splitlines()[0]}") from error
    return Chat(tokenizer, settings, model_end_ids(folder))


def model_end_ids(folder: Path) -> tuple[int, ...]:
    """``eos_token_id`` of the folder's generation_config.json and config.json, in that order."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            found.extend(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(dict.fromkeys(found))


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "the tokenizer")
