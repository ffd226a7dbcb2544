"""A user's function: loaded from the named file alone, its faults named."""

from pathlib import Path

import pytest

from pipeline.config import FunctionScorer
from pipeline.errors import UserError
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.labeller import Labels

GROUP = Group(
    Prompt((Message("user", "the question"),), answer="42"),
    (1,),
    tuple(Response(t, (), (), "stop") for t in ("42", "")),
)


def score(file: Path, source: str, name: str = "reward", cache: Path | None = None) -> Labels:
    file.write_text(source)
    accounts = Accounts(LabelCache(cache), Ledger(None))
    return build_labeller(FunctionScorer(file=str(file), name=name), accounts).label([GROUP])[0]


def test_it_sees_prompt_response_and_answer(tmp_path: Path) -> None:
    source = (
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Found:\n    value: float\n"
        "def mine(prompt, response, answer):\n"
        "    assert prompt == [{'role': 'user', 'content': 'the question'}]\n"
        "    return Found(2.5).value if response == answer else None\n"
    )
    assert score(tmp_path / "rewards.py", source, "mine").scores == (2.5, None)


def test_its_content_is_part_of_the_label(tmp_path: Path) -> None:
    cache = tmp_path / "labels.sqlite"
    source = (
        f"def reward(prompt, response, answer):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n        calls.write('x')\n    return 1\n"
    )
    for _ in range(2):
        assert score(tmp_path / "rewards.py", source, cache=cache).scores == (1.0, 1.0)
    assert (tmp_path / "calls").read_text() == "xx"
    assert score(tmp_path / "rewards.py", source.replace("return 1", "return 2"), cache=cache).scores == (2.0, 2.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def reward(p, r, a):\n    return 1 / len(r)\n",
            r"rewards\.py:2: reward: ZeroDivisionError: .* the response ''",
        ),
        (
            "def reward(p, r, a):\n    return 'high'\n",
            r"rewards\.py: reward gave 'high', at the response '42' to .*question",
        ),
        ("def reward(p, r, a):\n    return float('nan')\n", "reward gave nan"),
        ("def reward(p, r, a):\n    return 10 ** 400\n", "reward gave 1000"),
        ("def reward(p, r, a):\n    return 10 ** 5000\n", "reward gave something of type int"),
        ("class X:\n    __repr__ = None\ndef reward(p, r, a):\n    return X()\n", "reward gave something of type X"),
        (
            "class E(Exception):\n    __str__ = None\ndef reward(p, r, a):\n    raise E\n",
            r"rewards\.py:4: reward: E, at",
        ),
        ("def reward(p, r, a):\n    raise SystemExit(3)\n", r"rewards\.py:2: reward: SystemExit: 3"),
        ("import nonsense_of_mine\n", r"rewards\.py:1: ModuleNotFoundError: No module named 'nonsense_of_mine'"),
        ("def reward(:\n", r"rewards\.py:1: SyntaxError"),
        (
            "def other(p, r, a):\n    return 1\n",
            r"scorer\.name: .*rewards\.py has no function 'reward'; it has \['other'\]",
        ),
        ("reward = 3\n", "has no function 'reward'"),
        ("def reward(p, r):\n    return 1\n", r"reward must take \(prompt, response, answer\)"),
    ],
)
def test_faults_are_named(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        score(tmp_path / "rewards.py", source)
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"scorer\.file: /no/rewards\.py: cannot be read"):
        build_labeller(FunctionScorer(file="/no/rewards.py"), Accounts(LabelCache(None), Ledger(None)))
