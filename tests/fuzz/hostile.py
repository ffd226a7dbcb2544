"""Values and bytes that readers have stumbled over."""

import json
from typing import Any

from hypothesis import strategies as st

_PAIRS = zip("abcdefgh", "bcdefghi", strict=True)
_LAUGHS = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in _PAIRS)
BILLION_LAUGHS = f"a: &a [x, x, x, x, x, x, x, x, x]\n{_LAUGHS}"
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[2J\x1b]8;;https://evil.example\x07",
    "\u202e\u2066",
    "\ufeff",
    "\ud800",
    "x" * 70_000,
    "\n" * 3000,
    "[" * 3000,
    "{'a':" * 2000,
    "9" * 5000,
    "1e999",
    "-1e-999",
    "nan",
    ".inf",
    "NO",
    "null",
    "~",
    "1_000",
    "0x1F",
    "12:30:45",
    "2001-99-99",
    "2001-01-01T00:00:00+99:99",
    "<<",
    "=",
    "<|im_end|>",
    "<s></s>",
    "\n\nHuman: a\n\nAssistant: b",
    "Human:\n\nAssistant:\n\nAssistant:",
    "/etc/passwd",
    "../../x",
    "{{ 1 / 0 }}",
    "[red]",
    "%s%n{0}",
    "name[A], food[B]",
)
YAML = (
    BILLION_LAUGHS,
    "a: &a {b: *a}\n",
    "<<: {name: x}\n",
    "<<: [1, 2]\n",
    "? [a, b]\n: 1\n",
    "? {a: 1}\n: 1\n",
    "!!python/object/apply:os.system ['touch pwned']\n",
    "name: !!python/name:os.system\n",
    "name: !!binary '***'\n",
    "name: !!timestamp x\n",
    "name: !!int x\n",
    "name: !!float x\n",
    "name: !!set {a, b}\n",
    "name: !!omap [a: 1]\n",
    "name: !!pairs [a: 1, b]\n",
    "name: !!bool x\n",
    "name: !!map x\n",
    "name: !!seq x\n",
    "name: !<tag:x> y\n",
    "name: 2001-99-99\n",
    "name: 2001-01-01 00:00:00 +99:99\n",
    f"seed: {'9' * 5000}\n",
    f"seed: 0x{'f' * 5000}\n",
    f"seed: {':'.join(['59'] * 3000)}\n",
    "seed: 1:2:3\n",
    "seed: 0b2\n",
    "seed: -_\n",
    "seed: .\n",
    f"{'[' * 4000}",
    f"{'{a: ' * 4000}",
    f"{'- ' * 4000}x",
    "a: b: c\n",
    "\ta: 1\n",
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\nname: x\n",
    "%TAG ! tag:x,2000:\n--- !y 1\n",
    "- a\n",
    "1: 2\n",
    "null: 1\n",
    "true: 1\n",
    "[]: 1\n",
    "'a': 1\na: 2\n",
    "x: |\n  a\n b\n",
    'x: "\\ud800"\n',
    'x: "\\U00110000"\n',
    'x: "\\x00"\n',
    "\ufeffname: x\n",
    "x: \x85\n",
    "@\n",
    "`\n",
    "x: *nothing\n",
    "x: &x &y 1\n",
    "name: x\nname: y\n",
)
BYTES = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1f\x8b",
    b"PAR1",
    b"PAR1" * 4,
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff\0\0\0\0",
    b"\n" * 5000,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'"' + b"x" * 200_000,
    b'[{"prompt": "a"',
    b"[1, 2,]",
    b"[{}] x",
    b'{"prompt": NaN}\n',
    b'{"prompt": 1e999}\n',
    b'{"prompt": ' + b"9" * 5000 + b"}\n",
    b'[{"prompt": ' + b"9" * 5000 + b"}]",
    b'{"prompt": "\\ud800"}\n',
    b'{"\\ud800": 1}\n',
    b'{"prompt": "a", "prompt": "b"}\n',
    b'a,b\n"1,2\n',
    b"a,a\n1,2\n",
    b"\r\r\r",
    b"a\0,b\n1,2\n",
)

texts = st.sampled_from(TEXTS) | st.text(max_size=12)
scalars = (
    texts
    | st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from((2**31, 2**63, -(2**64), 10**30))
    | st.floats()
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int) -> Any:
    """``depth`` lists and objects in one another."""
    inner: Any = "x"
    for level in range(depth):
        inner = [inner] if level % 2 else {"role": inner}
    return inner


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` as it is, or with bytes changed, cut off, put in or doubled, or something else altogether."""
    way = draw(st.sampled_from(("whole", "whole", "whole", "flipped", "cut", "put in", "doubled", "other", "random")))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    match way:
        case "flipped" if content:
            return content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "put in":
            return content[:place] + draw(st.sampled_from(BYTES)) + content[place:]
        case "doubled":
            return content[:place] + content[max(place - 40, 0) :]
        case "other":
            return draw(st.sampled_from(BYTES))
        case "random":
            return draw(st.binary(max_size=60))
    return content


def as_json(value: Any) -> str:
    """JSON, or where Python has no JSON for ``value``, its text; NaN and lone surrogates are kept."""
    return json.dumps(value, default=str)
