"""Questions to people, and what their answers say."""

import json
from collections import Counter

from pipeline.types import Group, Message, Prompt, Response
from reward_models.people.people import question, questions_page, read_answers, with_votes


def asked(name: str = "p", first: str = "one", second: str = "two") -> Group:
    sides = tuple(Response(text, (n,), (), "stop") for n, text in enumerate((first, second)))
    return Group(Prompt((Message("user", name),)), (len(name), *name.encode()), sides)


def side_of(group: Group, text: str) -> str:
    row = question(group)
    return "a" if row["a"] == text else "b"


def test_sides_are_swapped_by_lot_and_votes_find_their_way_back() -> None:
    groups = [asked(str(n)) for n in range(200)]
    sides = Counter(side_of(group, "one") for group in groups)
    assert 70 < sides["a"] < 130
    for group in groups[:20]:
        assert with_votes(group, Counter([side_of(group, "one")])).scores == (1.0, 0.0)
        assert with_votes(group, Counter([side_of(group, "two")] * 3 + ["tie"])).scores == (0.125, 0.875)
    assert with_votes(groups[0], Counter({"skip": 2})).scores == (None, None)
    assert with_votes(groups[0], Counter({"tie": 1, "skip": 1})).scores == (0.5, 0.5)


def test_answers_are_read_and_faults_named() -> None:
    one, other = asked("p"), asked("q")
    lines = [
        json.dumps({"id": one.id, "answer": "a"}),
        json.dumps({"id": one.id, "answer": "tie"}),
        json.dumps({"id": one.id, "answer": "A"}),
        "not json",
        json.dumps({"id": "unknown", "answer": "a"}),
        "",
        '{"id": "' + other.id,
    ]
    found = read_answers("\n".join(lines).encode(), [one, other])
    assert found.votes == {one.id: Counter({"a": 1, "tie": 1})}
    assert [fault.split(":")[0] for fault in found.faults] == ["row 3", "row 4", "row 5", "row 7"]
    assert "must be one of a, b, tie, skip" in found.faults[0]


def test_no_answer_is_lost_and_no_byte_stops_the_reader() -> None:
    one, other = asked("p"), asked("q")
    last = json.dumps({"id": other.id, "answer": "b"}).encode()
    found = read_answers(
        b'\xef\xbb\xbf{"id": "' + one.id.encode() + b'", "answer": "a"}\r\n\xff\n' + last, [one, other]
    )
    assert found.votes == {one.id: Counter(a=1), other.id: Counter(b=1)}
    assert found.faults == ["row 2: not UTF-8 (byte 1 of the row)"]
    half = read_answers(last + b"\n" + last[:-5], [one, other])
    assert half.votes == {other.id: Counter(b=1)}
    assert half.faults == ["row 2: not JSON, and has no line break: cut off?"]


def test_the_page_escapes_what_models_and_users_wrote() -> None:
    evil = '</div><script>alert(1)</script><img src=x onerror="alert(2)">'
    page = questions_page("run <b>", [asked(evil, evil, "plain")])
    assert evil not in page and "<script>alert" not in page and "run &lt;b&gt;" in page
    assert page.count("&lt;script&gt;alert(1)") == 2 and "default-src 'none'" in page
