"""Questions to people about images: both inside the page, side by side, in the order that the answers mean."""

import base64
import io
import json
import re
from collections import Counter

from PIL import Image

from pipeline.types import Group, Message, Prompt, Response
from reward_models.people.people import question, questions_page, read_answers, with_votes
from tests.support.pictures import BLUE, RED, picture

FILES = {"aaaa": picture(BLUE), "bbbb": picture(RED)}


def asked(number: int, prompt: str = "a sea") -> Group:
    sides = tuple(Response(name, (number, place), (), "stop") for place, name in enumerate(FILES))
    return Group(Prompt((Message("user", prompt),)), (number,), sides)


def test_both_images_stand_in_the_page_in_the_order_of_the_answers() -> None:
    groups = [asked(number) for number in range(12)]
    page = questions_page("run", groups, FILES)
    found = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((0, 0))
        for data in re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    ]
    rows = [question(group) for group in groups]
    colour = {"aaaa": BLUE, "bbbb": RED}
    assert found == [colour[row[side]] for row in rows for side in "ab"]
    assert {row["a"] for row in rows} == {*FILES}
    assert "Which image is better?" in page and "img-src data:" in page


def test_a_vote_for_a_side_is_one_for_its_image() -> None:
    group = asked(1)
    bluer = next(side for side in "ab" if question(group)[side] == "aaaa")
    answers = read_answers(json.dumps({"id": group.id, "answer": bluer}).encode(), [group])
    assert with_votes(group, answers.votes[group.id]).scores == (1.0, 0.0)
    assert with_votes(group, Counter({"tie": 1})).scores == (0.5, 0.5)


def test_a_prompt_is_text_and_the_page_of_texts_has_no_images() -> None:
    evil = '"><img src=x onerror=alert(1)><script>alert(1)</script>'
    page = questions_page(evil, [asked(1, evil)], FILES)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert page.count("<img ") == 2
    assert "<img " not in questions_page("run", [asked(1)]) and "Which answer is better?" in questions_page("run", [])
