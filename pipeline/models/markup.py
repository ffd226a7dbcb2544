"""Texts that a tokenizer or its chat template reads as more than text, and how contents stay text. Torch-free.

A data set or a model may write such texts: to end its turn, to begin another, or by accident. Control tokens are the
tokenizer's special tokens and every added token that its template writes, special or not. Headers are what the template
writes around turns in plain text, such as ``[INST]`` or ``### Response:``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import UserError
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message

# Noncharacters: Unicode gives them no meaning, and promises to keep it so.
_CUTS = tuple(chr(0xFDD0 + place) for place in range(32))
_MARKS = ("prefloopfirst", "prefloopsecond", "prefloopthird", "prefloopfourth")
_TAG = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[/?[A-Z][A-Z_]{1,40}\]")
_LONGEST_HEADER = 40
# Markup inside of an assistant's turn. Like tool calls, it belongs to whoever writes the turn.
_THOUGHTS = re.compile(r"</?(?:think|thinking|thought|reasoning|reason)>|\[/?THINK\]")


class Markup:
    """The control tokens and headers of one tokenizer and its template.

    Attributes:
        ids: control tokens with their ids.
        headers: what the template writes around turns in plain text.
    """

    def __init__(self, tokenizer: Any, template: ChatTemplate | None, *, all_added: bool = False) -> None:
        """``template``: None for contents that are joined without one. ``all_added``: count every added token."""
        added = {int(number): token for number, token in tokenizer.added_tokens_decoder.items()}
        plain = "" if template is None else _plain_conversation(template)
        source = "" if template is None else template.source
        special = {str(tokenizer.convert_ids_to_tokens(i)): i for i in tokenizer.all_special_ids if i is not None}
        special |= {token.content: number for number, token in added.items() if token.special}
        written = {
            token.content: number
            for number, token in added.items()
            if all_added or token.content in source or token.content in plain
        }
        self.ids = {text: number for text, number in (special | written).items() if _is_markup(text)}
        self.headers = tuple(_headers(plain, [token.content for token in added.values()]))
        # Tokens for thoughts and tools belong into an assistant's turn, which may write them itself.
        own = {
            text for text in self.ids if text not in special and (text not in plain or _THOUGHTS.fullmatch(text))
        } - {text for text in self.ids if all_added}
        self._tokens = {False: _any(self.ids), True: _any(set(self.ids) - own)}
        self._headers = re.compile("|".join(_header_pattern(text) for text in self.headers) or "(?!)")
        self._normalise = _normaliser(tokenizer, [token for token in added.values() if token.content in self.ids])

    def found(self, text: str, role: str = "assistant") -> list[tuple[str, int | None]]:
        """Return the control tokens, with their ids, and the headers (None) that a turn's ``text`` spells."""
        tokens = self._tokens[role == "assistant"]
        read = self._as_read(text, role)
        return [
            *((token, self.ids[token]) for token in tokens.findall(read)),
            *((header, None) for header in self._headers.findall(read) if not _is_own(header, role)),
        ]

    def pieces(self, text: str, role: str = "assistant") -> list[str]:
        """Cut ``text`` inside each control token: encoded one by one, the pieces stay text."""
        pattern, rest, pieces = self._tokens[role == "assistant"], self._as_read(text, role), []
        while (found := pattern.search(rest)) is not None:
            pieces.append(rest[: found.start() + 1])
            rest = rest[found.start() + 1 :]
        return [*pieces, rest]

    def broken(self, text: str, role: str = "assistant") -> str:
        """Return ``text`` with a space inside each control token and header."""
        joined = " ".join(self.pieces(text, role))

        def apart(found: re.Match[str]) -> str:
            header = found[0]
            return header if _is_own(header, role) else f"{header[0]} {header[1:]}"

        return self._headers.sub(apart, joined)

    def render(self, template: ChatTemplate, messages: Sequence[Message], generation_prompt: bool) -> list[str]:
        """Render ``messages`` in pieces: encoded one by one, only what the template wrote becomes control tokens.

        Raises:
            UserError: the template refuses these messages.
        """
        cut = next((c for c in _CUTS if not any(c in message.shown for message in messages)), _CUTS[0])
        literal = [
            replace(m, content=cut.join(self.pieces(m.content, m.role)), extra=cut.join(self.pieces(m.extra, m.role)))
            for m in messages
        ]
        return template.render(literal, generation_prompt).split(cut)

    def _as_read(self, text: str, role: str) -> str:
        """Return ``text``, or its normal form if only that spells a control token: the tokenizer looks there, too."""
        if self._normalise is None or self._tokens[role == "assistant"].search(text):
            return text
        normal = self._normalise(text)
        return normal if self._tokens[role == "assistant"].search(normal) else text


def _plain_conversation(template: ChatTemplate) -> str:
    """Return the longest conversation of plain texts that the template takes."""
    first, second, third, fourth = _MARKS
    talk = [Message("user", first), Message("assistant", second), Message("user", third)]
    shapes = ([Message("system", fourth), *talk], talk, talk[:2], talk[:1])
    for shape in shapes:
        try:
            asked = template.render(shape, True)
            answered = (
                template.render([*shape, Message("assistant", second)], False) if shape[-1].role == "user" else ""
            )
        except UserError:
            continue
        return f"{asked}{_MARKS[0]}{answered}"
    return ""


def _headers(plain: str, added: Iterable[str]) -> Iterator[str]:
    """Yield the headers in the text around turns: tags, and lines that end with a colon."""
    for content in sorted({text for text in added if text}, key=len, reverse=True):
        plain = plain.replace(content, "\n")
    begin, *between = re.split("|".join(_MARKS), plain)
    lines = [line.strip() for gap in between for line in gap.splitlines()]
    endings = [line for line in lines if line.endswith(":") and 2 < len(line) <= _LONGEST_HEADER]
    yield from dict.fromkeys([*_TAG.findall("\n".join([begin, *between])), *endings])


def _is_own(header: str, role: str) -> bool:
    """Whether a turn may write the header itself: the assistant's thoughts, which templates take from its text."""
    return role == "assistant" and _THOUGHTS.fullmatch(header) is not None


def _header_pattern(header: str) -> str:
    # Words with a colon count where a turn could begin, tags anywhere.
    return re.escape(header) if not header.endswith(":") else rf"(?<!\S){re.escape(header)}"


def _is_markup(text: str) -> bool:
    """Whether a token could be mistaken for nothing else: runs of spaces and plain words are added tokens, too."""
    return len(text) > 1 and not text.isspace() and not text.isalnum()


def _any(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _normaliser(tokenizer: Any, tokens: Iterable[Any]) -> Callable[[str], str] | None:
    """Return the tokenizer's normaliser if it looks for one of ``tokens`` in normalised text."""
    backend = vars(tokenizer).get("_tokenizer")
    found = None if backend is None else backend.normalizer
    if found is None or not any(token.normalized for token in tokens):
        return None
    normalise: Callable[[str], str] = found.normalize_str
    return normalise
