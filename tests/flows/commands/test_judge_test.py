"""``prefloop judge-test`` against a server that judges by what it reads."""

import json
from pathlib import Path

import pytest

from flows.commands.judge_test import ask_judges
from pipeline.errors import UserError
from tests.support.judge_server import judge_server


def config(folder: Path, url: str, judge: str = "") -> list[Path]:
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "Where do storks sleep?"}) + "\n")
    file = folder / "judged.yaml"
    file.write_text(
        "name: judged\nmode: iterative\npolicy: {path: MODEL}\nprompts: {path: " + str(folder / "prompts.jsonl") + "}\n"
        f"scorer: {{kind: judge, mode: pairwise, verdict: text, server: {{base_url: {url}, model: tried, attempts: 1, "
        f"price: {{input: 10, output: 100}}}}{judge}}}\n"
    )
    return [file]


def by_content(text: str) -> str:
    """A where only A's text is of storks, B where only B's is."""
    a, b = text.split("<<<RESPONSE A")[1].split("<<<RESPONSE B")
    return "Verdict: TIE" if ("storks" in a) == ("storks" in b) else f"Verdict: {'A' if 'storks' in a else 'B'}"


def test_a_judge_of_content_is_shown_with_its_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge_server(by_content) as server:
        assert ask_judges(config(tmp_path, server.url), [])
    said = capsys.readouterr().out
    assert said.count("verdict: 1, ") == 1 and said.count("verdict: 0, ") == 1 and said.count("verdict: 0.5, ") == 1
    assert said.count("request:\n") == 3 and "Where do storks sleep?" in said and "reply: Verdict: A" in said
    # Of each call 100 tokens at 10 and 10 at 100 a million.
    assert "3 calls, 300 tokens in, 30 out, cost 0.006" in said
    assert "prefers the answer to the question in both orders" in said


def test_a_judge_of_positions_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge_server(lambda _: "Verdict: A") as server:
        assert ask_judges(config(tmp_path, server.url), [])
    assert "chooses by position" in capsys.readouterr().out


def test_replies_without_a_verdict_are_shown_and_make_it_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(lambda _: "I would rather not say.\x1b[31m") as server:
        assert not ask_judges(config(tmp_path, server.url), [])
    said = capsys.readouterr().out
    assert said.count("verdict: none (unparsed)") == 3 and "I would rather not say." in said and "\x1b" not in said


def test_a_config_without_a_judge_is_refused(tmp_path: Path) -> None:
    files = config(tmp_path, "http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match="this config has none"):
        ask_judges(files, ["scorer={kind: length, target_words: 9}"])
