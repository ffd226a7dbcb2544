"""A response that holds HTML, Markdown or terminal escapes does nothing where it is shown."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from pipeline import safe_text
from pipeline.errors import RowsError
from pipeline.safe_text import (
    HIDDEN,
    KEY_VARIABLES,
    REPLACED,
    KeylessLines,
    keyless,
    markdown,
    markdown_block,
    name_keys,
    one_line,
    redacted,
    secrets_of,
    visible,
)

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


SECRET = "correct-horse-battery"


@given(st.lists(st.integers(1, 60)), st.sampled_from(["\n", "\r", ""]))
def test_a_secret_in_any_pieces_is_hidden(sizes: list[int], end: str) -> None:
    """One letter at a time, or cut anywhere; bytes that are no text stay."""
    text = b"\xff\xfe one\nkey=" + SECRET.encode() + b" and sk-abcdefghijklmnop\r50%|\x80" + SECRET.encode()
    lines, written, place = KeylessLines((SECRET,)), b"", 0
    for size in [*sizes, 10_000]:
        written += lines.feed(text[place : place + size])
        place += size
    written += lines.feed(end.encode()) + lines.end()
    hidden = HIDDEN.encode()
    assert written == b"\xff\xfe one\nkey=" + hidden + b" and " + hidden + b"\r50%|\x80" + hidden + end.encode()


def test_a_line_that_never_ends_is_written_in_pieces_and_no_secret_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_text, "LONGEST_LINE", 200)
    monkeypatch.setattr(safe_text, "HELD_BACK", 50)
    for after in range(20, 60):
        lines = KeylessLines(("schlüssel-zum-haus", SECRET))
        text = "é" * 20 + "." * 160 + "schlüssel-zum-haus" + "." * after
        written = lines.feed(text.encode())
        assert 100 < len(written) < 400
        assert (written + lines.end()).decode() == text.replace("schlüssel-zum-haus", HIDDEN)


def test_keys_that_a_config_names_are_secrets_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLES, "")
    monkeypatch.setenv("MY_JUDGE", "hunter22")
    assert redacted("told hunter22") == "told hunter22"
    name_keys({"scorer": {"server": {"api_key_env": "MY_JUDGE"}}, "sampler": {"api_key_env": None}})
    name_keys({"gate": [{"api_key_env": "ANOTHER"}]})
    assert redacted("told hunter22") == f"told {HIDDEN}"
    assert secrets_of({KEY_VARIABLES: "A,B,C", "A": "abcd", "B": "abc", "C": " a\nlonger \n", "D": "not-named"}) == (
        "a\nlonger",
        "longer",
        "abcd",
    )


def test_each_line_of_a_key_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = secrets_of({"SIGNING_KEY": "-----BEGIN-----\nMIIEvQIBADANBg\nshort\n-----END-----\n"})
    lines = KeylessLines(secrets)
    assert lines.feed(b"-----BEGIN-----\nMIIEvQIBADANBg\nshort\n") == b"[hidden]\n[hidden]\nshort\n"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("OPENAI_API_KEY", True), ("openaiApiKey", True), ("HF_TOKEN", True), ("MY_KEY_1", True), ("APIKEY", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True), ("PREFECT_API_AUTH_STRING", True), ("KEY_FOR_JUDGE", True),
        ("MAX_TOKENS", False), ("maxTokens", False), ("TOKENIZERS_PARALLELISM", False), ("KEYBOARD", False),
        ("MONKEY", False), ("AUTH_SOCK", False), ("KEYMAP", False), ("STATUS_CODE", False),
    ],
)  # fmt: skip
def test_the_name_of_a_variable_says_whether_it_holds_a_secret(name: str, secret: bool) -> None:
    assert secrets_of({name: "as long as a key"}) == (("as long as a key",) if secret else ())


def test_the_string_that_prefect_s_server_asks_for_is_a_secret() -> None:
    assert secrets_of({"PREFECT_API_AUTH_STRING": "prefloop:abc", "SSH_AUTH_SOCK": "/tmp/agent"}) == ("prefloop:abc",)
    assert redacted("Authorization: Basic cHJlZmxvb3A6YWJj") == f"Authorization: Basic {HIDDEN}"


def test_errors_that_leave_a_block_and_their_causes_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with pytest.raises(RowsError) as raised, keyless():
        try:
            raise ValueError(f"{SECRET} is wrong", 7)
        except ValueError as error:
            raise RowsError(f"refused: {SECRET}", ("row",)) from error
    assert str(raised.value) == f"refused: {HIDDEN}" and raised.value.example_ids == ("row",)
    assert raised.value.__cause__ is not None and raised.value.__cause__.args == (f"{HIDDEN} is wrong", 7)


def test_the_name_of_a_keys_variable_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLES, "")
    monkeypatch.setenv("OPENAI_API_KEY", "value-of-the-key")
    name_keys({"api_key_env": "OPENAI_API_KEY"})
    assert redacted("the key in OPENAI_API_KEY, value-of-the-key") == f"the key in OPENAI_API_KEY, {HIDDEN}"
