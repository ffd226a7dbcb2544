"""What is wrong with a labeller is said before anything runs, field, value and file named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from flows.preflight.labellers import check_answer, check_scorer, check_second
from pipeline.config import RunConfig, ScorerSettings, compares
from pipeline.errors import UserError
from pipeline.types import Message, Prompt
from tests.support.tiny_model import save_tiny_model

SERVER = {"base_url": "http://127.0.0.1:8000/v1", "model": "judge"}
JUDGE = {"kind": "judge", "server": SERVER}
PROMPTS = [
    Prompt((Message("user", "how many?"),), answer="#### 4"),
    Prompt((Message("user", "and now?"),), answer="many"),
]
UNANSWERED = Prompt((Message("user", "and then?"),))


def scorer(plain: dict[str, Any]) -> ScorerSettings:
    found: ScorerSettings = TypeAdapter(ScorerSettings).validate_python(plain)
    return found


def check(settings: ScorerSettings, prompts: Sequence[Prompt] = PROMPTS) -> None:
    check_scorer(settings)
    for prompt in prompts:
        check_answer(settings, prompt)


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"kind": "number"}, "the prompt 'and now?' is 'many'"),
        ({"kind": "classifier", "path": "/no/model"}, "scorer.path: /no/model: no such model folder"),
        ({"kind": "pairwise", "path": "/no/model"}, "scorer.path: /no/model: no such model folder"),
        ({"kind": "function", "file": "/no/rewards.py"}, "scorer.file: /no/rewards.py: cannot be read"),
        ({**JUDGE, "template": "/no/mine.jinja"}, "scorer.template: /no/mine.jinja: cannot be read"),
        (
            {**JUDGE, "server": {**SERVER, "api_key_env": "NO_SUCH_KEY"}},
            "scorer.server.api_key_env: the environment variable NO_SUCH_KEY is not set",
        ),
        (
            {"kind": "ensemble", "members": [{"scorer": JUDGE}, {"scorer": {"kind": "pairwise", "path": "/no/model"}}]},
            "scorer.members.1.scorer.path: /no/model",
        ),
    ],
)
def test_what_is_missing_is_named(plain: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError) as caught:
        check(scorer(plain))
    assert said in str(caught.value)


def test_formulas_need_an_answer() -> None:
    with pytest.raises(UserError, match=r"the scorer math needs an answer, but the prompt 'and then\?' has none"):
        check(scorer({"kind": "math"}), [*PROMPTS, UNANSWERED])


def test_what_is_there_passes_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", "sk-x")
    check(scorer({**JUDGE, "server": {**SERVER, "api_key_env": "JUDGE_TEST_KEY"}}))
    check(scorer({"kind": "number"}), PROMPTS[:1])
    # Whether an answer can be read is found while labelling, where it costs the time of one parse.
    check(scorer({"kind": "math"}), PROMPTS)
    check(scorer({"kind": "keywords"}))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({**JUDGE, "server": {**SERVER, "base_url": "https://me:key@host/v1"}}, "must not hold a user or a query"),
        ({**JUDGE, "server": {**SERVER, "base_url": "https://host/v1?key=x"}}, "must not hold a user or a query"),
        ({**JUDGE, "server": {**SERVER, "base_url": "host/v1"}}, "must begin with http"),
        ({**JUDGE, "server": {**SERVER, "base_url": "http://[::1/v1"}}, "must begin with http"),
        ({**JUDGE, "server": {**SERVER, "api_key_env": "sk-123"}}, "api_key_env"),
        ({**JUDGE, "server": {**SERVER, "budget": {"cost": 5}}}, "no price is set"),
        ({**JUDGE, "scale": [1, 5]}, "scale: mode pairwise with verdict text does not read it"),
        ({**JUDGE, "mode": "pointwise", "scale": [5, 1]}, "the first must be below"),
        ({**JUDGE, "mode": "pointwise", "verdict": "logprobs"}, "reads one digit"),
        ({**JUDGE, "mode": "pointwise", "pairs_per_prompt": 2}, "pairs_per_prompt: mode pointwise"),
        ({"kind": "ensemble", "members": [{"scorer": {"kind": "length"}}]}, "at least 2"),
        ({"kind": "ensemble", "members": [{"scorer": {"kind": "length"}}] * 2, "quorum": 3}, "quorum: 3"),
        ({"kind": "ensemble", "members": [{"scorer": {"kind": "length"}}] * 2, "penalty": 3}, "does not read it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        scorer(plain)


def test_disagreement_needs_labellers_that_can_disagree() -> None:
    plain = {"name": "x", "mode": "iterative", "policy": {"path": "m"}, "prompts": {"path": "p"}}
    with pytest.raises(ValidationError, match=r"pairing\.max_disagreement: only scorer\.kind ensemble"):
        RunConfig.model_validate({**plain, "scorer": {"kind": "length"}, "pairing": {"max_disagreement": 1.0}})


def test_which_labellers_compare() -> None:
    two = [{"scorer": JUDGE}, {"scorer": {"kind": "pairwise", "path": "m"}}]
    assert compares(scorer(JUDGE)) and compares(scorer({"kind": "ensemble", "members": two}))
    assert not compares(scorer({**JUDGE, "mode": "pointwise"}))
    assert not compares(scorer({"kind": "ensemble", "members": [*two, {"scorer": {"kind": "length"}}]}))


@pytest.mark.parametrize(
    ("training", "second", "said"),
    [
        ({"kind": "number"}, {"kind": "number"}, "gate.second: kind number with these settings is what scorer labels"),
        (JUDGE, {**JUDGE, "mode": "pointwise", "scale": [1, 5]}, "gate.second: judge is what scorer labels with"),
        ({"kind": "classifier", "path": "a"}, {"kind": "classifier", "path": "copy"}, "gate.second: copy is what"),
        ({"kind": "function", "file": "f.py"}, {"kind": "function", "file": "g.py", "name": "other"}, "g.py is what"),
        (
            {"kind": "ensemble", "members": [{"scorer": {"kind": "slots"}}, {"scorer": {"kind": "number"}}]},
            {"kind": "number"},
            "is what scorer.members.1.scorer labels with",
        ),
        ({"kind": "number"}, {"kind": "classifier", "path": "none"}, "gate.second.path: none: no such model folder"),
    ],
)
def test_a_second_labeller_that_training_uses_is_refused(
    training: dict[str, Any], second: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "copy"):
        save_tiny_model(tmp_path / folder)
    for file in ("f.py", "g.py"):
        (tmp_path / file).write_text("def reward(prompt, response, answer):\n    return 1.0\nother = reward\n")
    with pytest.raises(UserError) as caught:
        check_second(scorer(training), scorer(second))
    assert said in str(caught.value)


def test_a_second_labeller_of_its_own_passes(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def reward(prompt, response, answer):\n    return 1.0\n")
    check_second(scorer({"kind": "slots"}), scorer({"kind": "function", "file": str(tmp_path / "f.py")}))
    check_second(scorer({"kind": "slots"}), scorer({"kind": "slots", "length_cost": 0.5}))
    check_second(None, scorer({"kind": "number"}))
