"""Text that a model or a data set wrote, as it is shown to people: it is only ever read, and does nothing.

HTML pages put ``visible`` text through the template's own escaping; the terminal prints ``visible`` or ``one_line``
text without rich's markup (``markup=False``, or a ``rich.text.Text`` in tables); Markdown, such as Prefect's
artefacts, takes ``markdown`` inside of lines and table cells and ``markdown_block`` between them. Torch-free.
"""

import re
import string
import unicodedata

REPLACED = "\N{REPLACEMENT CHARACTER}"
# Joiners shape letters and emoji; all else of these categories drives terminals, turns the direction of the text
# around, ends strings or cannot be encoded: controls, formats, surrogates, private and unassigned characters.
_HARMLESS = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
_ACTIVE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
# What renderers of Markdown make links of, even where every character is escaped.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def visible(text: str, limit: int | None = None) -> str:
    """``text`` with a replacement character for each that would act, and at most ``limit`` of it; line breaks stay."""
    text = text.replace("\r\n", "\n")
    cut = limit is not None and len(text) > limit
    text = text[:limit] if cut else text
    if not text.isprintable():
        text = "".join(c if c in _HARMLESS or unicodedata.category(c) not in _ACTIVE else REPLACED for c in text)
    return f"{text} …" if cut else text


def one_line(text: str, limit: int | None = None) -> str:
    """``visible`` text on one line, its line breaks shown as ⏎."""
    return "⏎ ".join(visible(text, limit).replace("\t", " ").strip().split("\n"))


def markdown(text: str, limit: int | None = None) -> str:
    """``one_line`` text for Markdown: no link, image, table, emphasis, heading, code or HTML comes of it.

    Punctuation is escaped (CommonMark 2.4), and invisible joiners break what would be linked without any markup.
    """
    broken = _LINKED.sub("\N{WORD JOINER}", one_line(text, limit))
    return _PUNCTUATION.sub(r"\\\g<0>", broken)


def markdown_block(text: str, limit: int | None = None) -> str:
    """``visible`` text as a fenced block for Markdown, whose fence is longer than any in it; begins its own line."""
    shown = visible(text, limit)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{shown}\n{fence}"
