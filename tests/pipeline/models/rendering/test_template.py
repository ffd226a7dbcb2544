"""Templates are foreign code: whatever one does, there is a text or a message, in time and in memory."""

import threading

import pytest
from jinja2 import StrictUndefined

from pipeline.errors import UserError
from pipeline.models.rendering import meter
from pipeline.models.rendering.sandbox import LimitedSandbox, render_limited
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message
from tests.support.chat_formats import FORMATS, Format
from tests.support.tiny_model import TEMPLATE, tiny_tokenizer

TALK = (Message("user", "the cat"), Message("assistant", "sat"), Message("user", "on the mat"))
GROWING = "{% set n = namespace(x='12345678') %}{% for i in range(99) %}{% set n.x = WAY %}{% endfor %}{{ n.x }}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def render(source: str) -> str:
    return ChatTemplate(tiny_tokenizer(template=source)).render(TALK, True)


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
def test_the_text_is_the_library_s(format_: Format) -> None:
    tokenizer = format_.tokenizer()
    turns = [{"role": message.role, "content": message.content} for message in TALK]
    for asks in (True, False):
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
        assert ChatTemplate(tokenizer).render(TALK, asks) == theirs


def test_what_templates_use_works() -> None:
    source = (
        "{% macro say(m) %}{{ m.role | upper ~ ':' ~ m.content | trim }}{% endmacro %}"
        "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ say(m) }}{% endgeneration %}{{ ',' if not loop.last }}{{ loop.length }}{% endfor %}"
        "{{ {'a': 'é'} | tojson }}{{ '%03d' % 7 }}{{ '{:>3}'.format(1) }}{{ 'ab' * 2 }}{{ messages[::-1] | length }}"
        "{% for key, value in {'x': 1}.items() %}{{ key }}{{ value }}{% else %}none{% endfor %}{{ strftime_now('%%') }}"
    )
    assert render(source) == 'USER:the cat,3ASSISTANT:sat,3{"a": "é"}007  1abab3x1%'


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 2.0 ** 5000 }}", "OverflowError"),
        ("{{ range(10 ** 6) }}", "OverflowError"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ [].pop() }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no') }}", ": no$"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'x' %}", "no loader"),
        ("{{ " + "(" * 5000, "RecursionError"),
        ("{% for i in x %}" * 30 + "{% endfor %}" * 30, "SyntaxError"),
        ("{{ '\\ud800' }}", "half a character"),
        ("{% for %}", "cannot be read"),
        ("{{ 'x' * 10 ** 10 }}", "10000000000 items"),
        ("{{ 10 ** (10 ** 9) }}", "bits"),
        ("{{ 'x'.ljust(10 ** 10) }}", "10000000000 items"),
        ("{{ 'x' | center(10 ** 10) }}", "10000000000 items"),
        ("{{ '%9999999999d' % 1 }}", "width"),
        ("{{ '%9999999999d' | format(1) }}", "width"),
        ("{{ '{:>9999999999}'.format(1) }}", "width"),
        ("{{ lipsum(9) }}", "undefined"),
    ],
)
def test_whatever_fails_is_a_message(source: str, said: str) -> None:
    with pytest.raises(UserError, match=f"(?m)its chat template .*{said}"):
        render(source)


@pytest.mark.parametrize("way", ["n.x ~ n.x", "n.x + n.x", "n.x.replace('1', '11')", "[n.x] | join | string * 2"])
def test_texts_stay_small(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LARGEST_TEXT", 1 << 16)
    with pytest.raises(UserError, match="items; at most 65536"):
        render(GROWING.replace("WAY", way))


def test_a_loop_ends_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "CPU_SECONDS", 0.05)
    said: list[str] = []

    def run(source: str) -> None:
        try:
            render(source)
        except UserError as error:
            said.append(str(error))

    calls = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
    for source in (LOOP, calls):
        thread = threading.Thread(target=run, args=(source,))
        thread.start()
        thread.join()
    assert len(said) == 2 and all("takes more than 0.05 s of CPU time; does it loop?" in line for line in said)


def test_the_sandbox_serves_other_templates() -> None:
    made = LimitedSandbox(undefined=StrictUndefined).from_string("{% for i in [1, 2] %}{{ i ~ x }}{% endfor %}")
    assert render_limited(made, {"x": "a"}) == "1a2a"


def test_an_unknown_template_among_several_is_a_message() -> None:
    tokenizer = tiny_tokenizer(template=TEMPLATE)
    tokenizer.chat_template = {"tool_use": TEMPLATE}
    with pytest.raises(UserError, match="no default"):
        ChatTemplate(tokenizer)
