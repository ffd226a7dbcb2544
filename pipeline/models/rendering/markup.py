"""Texts that a tokenizer or its chat template reads as more than text, and how contents stay text. Torch-free.

A data set or a model may write such texts: to end its turn, to begin another, or by accident. Control tokens are the
tokenizer's special tokens and every added token that its template writes, special or not. Headers are what the template
writes around turns in plain text: tags such as ``[INST]``, and words such as ``### Response:`` or ``USER:`` that it
writes right before each content of a role. Words count only where they would begin a turn. The rest of a template's own
text, its dates, notes and instructions, is no header.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from pydantic import JsonValue

from pipeline.errors import UserError
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message

# Noncharacters: Unicode gives them no meaning, and promises to keep it so.
_CUTS = tuple(chr(0xFDD0 + place) for place in range(32))
_MARKS = ("prefloopfirst", "prefloopsecond", "prefloopthird", "prefloopfourth")
_ROLES = dict(zip(_MARKS, ("user", "assistant", "user", "system"), strict=True))
_MARKED = re.compile("(" + "|".join(_MARKS) + ")")
_TAG = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[/?[A-Z][A-Z_]{1,40}\]")
# Tags as HTML has them, which a template's prose may speak of.
_WORD_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9_-]*>")
_LINE = r"(?:\A|(?<=[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]))[^\S\n]*"
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
        texts = () if template is None else _plain_conversation(template)
        plain = "".join(texts)
        source = "" if template is None else template.source
        special = {str(tokenizer.convert_ids_to_tokens(i)): i for i in tokenizer.all_special_ids if i is not None}
        special |= {token.content: number for number, token in added.items() if token.special}
        written = {
            token.content: number
            for number, token in added.items()
            if all_added or token.content in source or token.content in plain
        }
        self.ids = {text: number for text, number in (special | written).items() if _is_markup(text)}
        shown = [_without(text, [token.content for token in added.values()]) for text in texts]
        tags, words = dict.fromkeys(chain.from_iterable(map(_tags, shown))), _role_words(shown)
        self.headers = (*tags, *words)
        # Tokens for thoughts and tools belong into an assistant's turn, which may write them itself.
        own = {
            text for text in self.ids if text not in special and (text not in plain or _THOUGHTS.fullmatch(text))
        } - {text for text in self.ids if all_added}
        self._tokens = {False: _any(self.ids), True: _any(set(self.ids) - own)}
        inline = [word for word, anywhere in words.items() if anywhere]
        begins = [word for word, anywhere in words.items() if not anywhere]
        patterns = (
            f"({_any(tags).pattern})",
            rf"(?<!\S)({_any(inline).pattern})(?:(?<=\W)|\b)",
            f"{_LINE}({_any(begins).pattern})",
        )
        self._headers = re.compile("|".join(patterns))
        self._normalise = _normaliser(tokenizer, [token for token in added.values() if token.content in self.ids])

    def found(self, text: str, role: str = "assistant") -> list[tuple[str, int | None]]:
        """Return the control tokens, with their ids, and the headers (None) that a turn's ``text`` spells."""
        tokens = self._tokens[role == "assistant"]
        read = self._as_read(text, role)
        return [
            *((token, self.ids[token]) for token in tokens.findall(read)),
            *(
                (match[match.lastindex or 0], None)
                for match in self._headers.finditer(read)
                if not _is_own(match[0], role)
            ),
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
            if _is_own(found[0], role):
                return found[0]
            after = found.start(found.lastindex or 0) - found.start() + 1
            return f"{found[0][:after]} {found[0][after:]}"

        return self._headers.sub(apart, joined)

    def broken_json(self, text: str, role: str = "assistant") -> str:
        """Return the JSON ``text`` with every text in it ``broken``; ``text`` itself if none is."""

        def apart(value: JsonValue) -> JsonValue:
            match value:
                case str():
                    return self.broken(value, role)
                case list():
                    return [apart(item) for item in value]
                case dict():
                    return {self.broken(key, role): apart(item) for key, item in value.items()}
            return value

        found: JsonValue = json.loads(text) if text else None
        clean = apart(found)
        return text if clean == found else json.dumps(clean, ensure_ascii=False)

    def render(self, template: ChatTemplate, messages: Sequence[Message], generation_prompt: bool) -> list[str]:
        """Render ``messages`` in pieces: encoded one by one, only what the template wrote becomes control tokens.

        Raises:
            UserError: the template refuses these messages.
        """
        cut = next((c for c in _CUTS if not any(c in message.shown for message in messages)), _CUTS[0])
        literal = [
            Message(
                m.role, cut.join(self.pieces(m.content, m.role)), m.extra and cut.join(self.pieces(m.extra, m.role))
            )
            for m in messages
        ]
        return template.render(literal, generation_prompt).split(cut)

    def _as_read(self, text: str, role: str) -> str:
        """Return ``text``, or its normal form if only that spells a control token: the tokenizer looks there, too."""
        if self._normalise is None or self._tokens[role == "assistant"].search(text):
            return text
        normal = self._normalise(text)
        return normal if self._tokens[role == "assistant"].search(normal) else text


def _plain_conversation(template: ChatTemplate) -> tuple[str, ...]:
    """Return the longest conversation of plain texts that the template takes, without and with its last answer."""
    first, second, third, fourth = _MARKS
    talk = [Message("user", first), Message("assistant", second), Message("user", third)]
    shapes = ([Message("system", fourth), *talk], talk, talk[:2], talk[:1])
    for shape in shapes:
        asks = shape[-1].role == "user"
        try:
            asked = template.render(shape, True)
            answered = template.render([*shape, Message("assistant", second)], False) if asks else ""
        except UserError:
            continue
        return f"{asked}{second if asks else ''}", answered
    return ()


def _without(text: str, added: Iterable[str]) -> str:
    """Return ``text`` with a line break for each added token."""
    for content in sorted({content for content in added if content}, key=len, reverse=True):
        text = text.replace(content, "\n")
    return text


def _tags(text: str) -> Iterator[str]:
    """Yield the tags around turns, but not those of which prose speaks."""
    for line in _MARKED.sub("\n", text).splitlines():
        for tag in _TAG.finditer(line):
            around = (_TAG.sub("", line[: tag.start()]), _TAG.sub("", line[tag.end() :]))
            if not (_WORD_TAG.fullmatch(tag[0]) and all(re.search(r"\w", side) for side in around)):
                yield tag[0]


def _role_words(texts: Iterable[str]) -> dict[str, bool]:
    """Return the words right before each content of a role; True: anywhere in a line, as the template writes them."""
    before: dict[str, list[tuple[str, bool]]] = {}
    for text in texts:
        previous = ""
        pieces = _MARKED.split(text)
        for gap, mark in zip(pieces[::2], pieces[1::2], strict=False):
            *above, last = _TAG.sub("\n", gap).rstrip().split("\n")
            merged = previous == _MARKS[3] and not gap.strip()  # a system turn that begins the user's
            if not merged:
                before.setdefault(_ROLES[mark], []).append((last.strip(), bool(previous) and not above))
            previous = mark
    found = {}
    for role, turns in before.items():
        word = min((word for word, _ in turns), key=len)
        same = all(other == word or re.search(rf"\s{re.escape(word)}\Z", other) for other, _ in turns)
        # A heading over the system's text alone, such as "# Instructions", marks no role.
        shape = r".*\w.*:" if role == "system" else r".*\w.*:|#.*\w.*"
        header = re.fullmatch(shape, word) is not None and 2 < len(word) <= _LONGEST_HEADER
        if same and header:
            found[word] = not word[0].isalnum() or any(inline for _, inline in turns)
    return found


def _is_own(header: str, role: str) -> bool:
    """Whether a turn may write the header itself: the assistant's thoughts, which templates take from its text."""
    return role == "assistant" and _THOUGHTS.fullmatch(header) is not None


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
