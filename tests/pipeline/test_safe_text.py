"""A response that holds HTML, Markdown or terminal escapes does nothing where it is shown."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from pipeline.safe_text import REPLACED, markdown, markdown_block, one_line, visible

ACTIVE = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "links": "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "8-bit CSI": "\x9b31m",
    "8-bit OSC": "\x9d0;owned\x9c",
    "carriage return": "safe\rnot",
    "backspace": "ab\b\bcd",
    "NUL": "a\0b",
    "right-to-left override": "\u202egnp.exe\u202c",
    "isolate": "\u2066x\u2069",
    "line separator": "a\u2028b",
    "tag characters": "\U000e0041",
    "lone surrogate": "\ud800",
    "byte order mark": "\ufeffx",
}
MARKDOWN = (
    "[click](https://evil.example) ![x](https://evil.example/x.png) <img src=x onerror=alert(1)>",
    "https://evil.example www.evil.example you@evil.example ftp://evil.example mailto:you@evil.example HTTPS://E.EX",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "# heading\n\n- item\n1. item\n> quote\n\n    code\n\n```mermaid\ngraph TD\n```\n***\n",
    "text\n===\n\n[x]: https://evil.example\n[x] **bold** _it_ ~~gone~~ `code` <!-- --> &lt;b&gt; \\| \\",
    "<https://evil.example> <script>alert(1)</script> <div>\n<b>",
)


@pytest.mark.parametrize("text", ACTIVE.values(), ids=ACTIVE.keys())
def test_what_acts_is_replaced(text: str) -> None:
    for shown in (visible(text), one_line(text), markdown(text), markdown_block(text)):
        assert REPLACED in shown
        assert not set(re.sub(r"[\x20-\x7e\n]", "", text)) & set(shown)
        shown.encode("utf-8")


def test_what_people_write_stays() -> None:
    text = "Grüße, 你好\u3000。 नमस्ते עברית العربية 👩‍👩‍👧 e\u0301\n\tfin"
    assert visible(text) == text
    assert visible("a\r\nb") == "a\nb"
    assert one_line(" a\nb\tc ") == "a⏎ b c"
    assert visible("abc", 3) == "abc"
    assert visible("abcd", 3) == "abc …"


def plain_text(markdown_text: str) -> str:
    """What a page would show, where it is one paragraph of text; fails for any other construct."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown_text)
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {"text", "text_special"}
    return "".join(child.content for child in children)


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_is_text(text: str) -> None:
    shown = plain_text(markdown(text))
    assert shown.replace("\u2060", "") == one_line(text)
    # remark, which Prefect's pages use, looks for these in the text that is left when escapes are gone.
    assert not re.search(r"https?://|ftp://|www\.|[\w.+-]@\w", shown, re.IGNORECASE)


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_stays_in_its_cell(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| {markdown(text)} | {markdown(text)} |\n| 1 | 2 |"
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(table)
    cells = [token for token in tokens if token.type == "td_open"]
    assert len(cells) == 4
    assert tokens[0].type == "table_open" and tokens[-1].type == "table_close"


@given(st.text(st.sampled_from("`~|[](){}<>*_#-+=!\\.:/@ \n1ahtpsw&;\"'\x1b\u202e"), max_size=60))
@example("`" * 5 + "\n~~~\n```")
def test_no_text_leaves_its_markdown(text: str) -> None:
    assert plain_text(markdown(text)).strip().replace("\u2060", "") == one_line(text).strip()
    block = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown_block(text) + "\n\nbehind")
    assert [token.type for token in block] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert block[0].content == visible(text) + "\n"


@given(st.text(max_size=40))
def test_whatever_a_response_holds_can_be_printed(text: str) -> None:
    with io.StringIO() as output:
        Console(file=output, soft_wrap=True).print(visible(text), markup=False, highlight=False)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", output.getvalue())
        output.getvalue().encode("utf-8")
