"""A template's loops, filters and texts end in time and in memory, whatever it does; ordinary data goes through."""

import time

import pytest
from jinja2 import TemplateRuntimeError

from pipeline.models.rendering import meter
from pipeline.models.rendering.sandbox import LimitedSandbox, render_limited
from pipeline.models.rendering.template import ChatTemplate
from pipeline.types import Message
from tests.support.chat_formats import FORMATS
from tests.support.tiny_model import tiny_tokenizer

NUMBER = 987654321012
SMALL = {"LARGEST_TEXT": 1 << 16, "MOST_MADE": 1 << 20, "CPU_SECONDS": 0.2}
DOUBLED = "{% set n = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}"
DOUBLED += "{% set n.b = (n.b, n.b) %}{% endfor %}"
BIG = "{% set x = 'a' * 60000 %}{% set n = namespace(kept=[]) %}"
KEPT = BIG + "{% for i in range(90000) %}{% set n.kept = [n.kept, WAY] %}{% endfor %}"
SLOW = "{% for i in range(90000) %}{% for j in range(90000) %}WAY{% endfor %}{% endfor %}"


def rendered(source: str, **values: object) -> str:
    return render_limited(LimitedSandbox().from_string(source), values)


# In each line: what reads all of its lists.
READ = """\
n.a
n.a == n.b
n.a in [n.b]
{n.a: 1}
{}[n.a]
{}.get(n.a)
n.a is eq(n.b)
n.a | string
'%s' % n.a
'{}'.format(n.a)
n.a ~ ''
[n.a, n.b] | sort
n.a | tojson
[n.a] | unique | list
{1: n.a}.values()
''.join(n.a)
[n.a, n.b] | max
[[n.a, n.b]] | map('max') | list""".splitlines()
# What makes something new.
MADE = """\
x[1:]
x.partition('b')
x.upper()
x | upper
x + 'b'
x ~ 'b'
'%s' % x
'{}b'.format(x)
y
m(x)
(x,) * 1000
[i] * 1000
x.replace('a', 'b')
x | replace('a', 'b')
x.split('b')
[x, i] | join
x[:1000] | list
range(1000) | list
dict.fromkeys(range(1000))
2 ** 30000 + i""".splitlines()
# What would be too large.
SIZED = r"""(x * 9).replace('a', y)
(x * 9) | replace('a', y)
(x * 9) | replace('', y)
range(90000) | join(y)
range(90000) | map('string') | join(y)
y.join(range(90000) | map('string'))
('%(a)s' * 9000) % {'a': y}
('{0}' * 9000).format(y)
('{a}' * 9000).format_map({'a': y})
('a\n' * 90000) | indent(90000)
(x * 9).translate({97: y})
('\t' * 90000).expandtabs(90000)
[1] | batch(10 ** 9, 1) | list
(5).to_bytes(10 ** 9, 'big')
'x'.zfill(10 ** 9)
([y] * 10 ** 6) | sort
'a b ' * 10 ** 7
('a ' * 10 ** 7).split()
('a\n' * 10 ** 7).splitlines()
('é' * 10 ** 7) | list""".splitlines()
# What a loop without end may hold.
LOOPED = """\
{# nothing #}
{{ [1, 2] | map('string') | join }}
{{ range(5000) | list | length }}
{{ 7 in range(9) | list }}
{% if i == j %}{% endif %}
{{ range(90000) | select('gt', 90000) | first }}
{% set y = [i, j] %}
{% for k in range(90000) if k < 0 %}{% endfor %}
{{ [[1]] | map('map', 'string') | map('list') | list }}""".splitlines()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in SMALL.items():
        monkeypatch.setattr(meter, name, limit)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x | replace('report', 'page') }}", "see page%2020240115.pdf"),
        ("{{ x | trim }}{{ x.strip() }}{{ 'a'.join([x]) }}", "see report%2020240115.pdf" * 3),
        ("{{ '%s!' % x }}{{ '%s!' | format(x) }}{{ '{}!'.format(x) }}", "see report%2020240115.pdf!" * 3),
        ("{{ '**bold** 1234567 %s' % 1 }}", "**bold** 1234567 1"),
        ("{{ '1234567 {} %*d 1234567 %9999999d'.format(1) }}", "1234567 1 %*d 1234567 %9999999d"),
        ("{{ '%(name)s 20240115' % {'name': x} }}", "see report%2020240115.pdf 20240115"),
        ("{{ ('up 5% 1234567' ~ number) | upper }}", "UP 5% 1234567987654321012"),
        ("{{ number | string }}{{ [number] | join }}{{ number | tojson }}", "987654321012" * 3),
        ("{{ number + 1 }}{{ [number] | sum }}{{ {number: 'y'}.get(number) }}", "987654321013987654321012y"),
        ("{{ number | default(1) }}{{ number in [number] }}{{ number | int(number) }}", "987654321012True987654321012"),
        (
            "{{ '%d' % number }}{{ '%05.1f' % 2 }}{{ '{:>4}'.format(1) }}{{ '%*d' % (3, 1) }}",
            "987654321012002.0   1  1",
        ),
        ("{{ 'a,b'.split(',') | last }}{{ 'a b'.split() | first }}{{ 'a\nb'.splitlines()[1:] | join }}", "bab"),
        ("{% for a, b in [(1, 2)] %}{{ b }}{% endfor %}{% set a, b = 3, 4 %}{{ b }}{{ (1, 2)[1] }}", "242"),
        ("{% set y %}{{ x[4:10] }}{% endset %}{{ y }}{% filter upper %}{{ y }}{% endfilter %}", "reportREPORT"),
        ("{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'eq', 2) | map(attribute='a') | list }}", "[2]"),
        ("{{ [[1], [2]] | sum(start=[]) }}{{ 'a\nb' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}", None),
    ],
)
def test_ordinary_data_goes_through(source: str, text: str | None) -> None:
    found = rendered(source, x="see report%2020240115.pdf", number=NUMBER)
    assert found == (text or "[1, 2]a\n  b[[1, 2], [3]]")


@pytest.mark.parametrize("name", ["llama 3", "qwen 3", "deepseek", "vicuna"])
def test_a_million_tokens_go_through(name: str) -> None:
    turns = [Message(("user", "assistant")[i % 2], "the cat sat on it. " * 1000) for i in range(263)]
    text = ChatTemplate(FORMATS[name].tokenizer()).render(turns, generation_prompt=True)
    assert text.count("the cat") == 263_000 and len(text) > 4_990_000


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("use", READ)
def test_lists_in_lists_count_as_often_as_they_are_read(use: str) -> None:
    with pytest.raises(TemplateRuntimeError, match="items; at most 65536"):
        rendered(f"{DOUBLED}{{{{ {use} }}}}")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", MADE)
def test_what_a_rendering_makes_is_added_up(way: str) -> None:
    before = "{% macro m(x) %}{{ x }}b{% endmacro %}"
    source = before + KEPT.replace("{% set n.kept", "{% set y %}{{ x }}b{% endset %}{% set n.kept").replace("WAY", way)
    with pytest.raises(TemplateRuntimeError, match="more than 1048576 characters in all"):
        rendered(source)


@pytest.mark.parametrize("use", SIZED)
def test_sizes_are_known_before_the_work_is_done(use: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateRuntimeError, match="items; at most 33554432"):
        rendered(f"{{% set x = 'a' * 100000 %}}{{% set y = 'b' * 100000 %}}{{{{ ({use}) is none }}}}")
    assert time.thread_time() - began < meter.CPU_SECONDS


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("'%*d' % (2000000000, 1)", "a width of millions"),
        ("'%.2000000000f' % 1.0", "a width of millions"),
        ("'{:{}}'.format(1, 2000000000)", "a width of millions"),
        ("5 | round(-2000000000)", "rounds to more than 1024 digits"),
        ("5 | round(2000000000, 'ceil')", "rounds to more than 1024 digits"),
        ("x.rfind('b' + x)", "searches"),
        ("x.strip('b' * 99999)", "searches"),
        ("x | trim('b' * 99999)", "searches"),
        ("x | wordwrap(1)", "at most"),
        ("x.encode('punycode')", "allowed are ascii"),
        ("x.encode('utf-8').decode('idna')", "allowed are ascii"),
    ],
)
def test_work_out_of_proportion_is_refused(use: str, said: str) -> None:
    with pytest.raises(TemplateRuntimeError, match=said):
        rendered(f"{{% set x = 'a' * 99999 %}}{{{{ {use} }}}}")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", LOOPED)
def test_loops_end(way: str) -> None:
    with pytest.raises(TemplateRuntimeError, match=r"does it loop|characters in all"):
        rendered(SLOW.replace("WAY", way))


def test_a_date_s_format_is_short() -> None:
    template = ChatTemplate(tiny_tokenizer(template="{{ strftime_now('%Y' * messages[0].content | int) | length }}"))
    assert template.render((Message("user", "3"),), True) == "12"
    with pytest.raises(Exception, match="a date's format of 2000000 characters"):
        template.render((Message("user", "1000000"),), True)
