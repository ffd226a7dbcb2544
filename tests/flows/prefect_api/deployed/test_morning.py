"""The morning after a night of runs, from Prefect's UI alone: what ran, what changed, what it cost, what to decide.

Pictures go to the folder that SCREENSHOTS names, for whoever wants to look: desktop and phone, light and dark.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.run_folder.approvals import read_approval
from pipeline.storage.run_folder import RunFolder
from tests.support.browser import CHROMIUM, Browser
from tests.support.judge_server import judge_server, longer_wins
from tests.support.prefloop_up import Up, started_up
from tests.support.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.whole,
    pytest.mark.timeout(3000),  # the night is in the first test's time
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

BASE = """
mode: iterative
rounds: 1
prompts: {path: prompts.jsonl}
held_out: {prompts: 12}
prompts_per_round: 16
sampler: {kind: transformers}
sampling: {n: 4, max_tokens: 10}
evaluation: {samples: 2}
training: {learning_rate: 3.0e-3, batch_size: 2, epochs: 3, alarms: {margin: %s}}
"""
JUDGE = "scorer: {kind: judge, mode: pairwise, server: {base_url: '%s', model: m, price: {input: 500, output: 1500}}}\n"
LENGTH = "scorer: {kind: length, target_words: 12}\n"
# What each run of the night is to come to.
STATES = {"better": "COMPLETED", "asking": "PAUSED", "worse": "COMPLETED", "broken": "FAILED"}
TITLES = {
    name: f"{name} · {decision} · iterative · 1 round"
    for name, decision in (("better", "promote"), ("asking", "pause"), ("worse", "roll back"))
}
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
OLD, NEW = "", "/v2"
# The button of a page's menu, which on a phone holds what a wide page has buttons for.
MENUS = {OLD: ".flow-run-menu button", NEW: "main button[aria-haspopup=menu]"}


class Morning:
    """A server after its night, and the browser of the person who looks."""

    def __init__(self, up: Up, browser: Browser, flow_runs: dict[str, str], pictures: Path) -> None:
        self.up, self.browser, self.flow_runs, self.pictures = up, browser, flow_runs, pictures
        self.ui = f"http://127.0.0.1:{up.port}"

    def artefact(self, name: str, kind: str) -> str:
        """The id of the newest artefact of a run."""
        asked = {"flow_runs": {"id": {"any_": [self.flow_runs[name]]}}, "sort": "CREATED_DESC"}
        found = self.up.api.post("/artifacts/filter", json=asked).raise_for_status().json()
        return next(str(one["id"]) for one in found if str(one["key"]).endswith(f"-{kind}"))

    def looks(self, picture: str, path: str, *texts: str, height: int = 1000) -> str:
        """The page's text, after pictures of it in all views; both UIs show ``texts``, and scroll sideways in none."""
        shown = ""
        for ui in (OLD, NEW):
            for width, scheme in VIEWS:
                self.browser.dress(scheme)
                self.browser.resize(width, height)
                shown = self.browser.open(f"{self.ui}{ui}{path}", *texts)
                name = f"{picture}-{'new' if ui else 'old'}-{width}-{scheme}.png"
                self.browser.picture(self.pictures / name, height, width)
                assert self.browser.overflow() <= 0, name
        return shown

    def form(self, ui: str, path: str, width: int, scheme: str) -> str:
        """The page's text with the form of a paused run open, after a picture of it."""
        browser = self.browser
        browser.dress(scheme)
        browser.resize(width)
        browser.open(f"{self.ui}{ui}{path}", "Suspended")
        if (ui, width) != (OLD, 1280):
            browser.press(MENUS[ui])
        browser.click("Resume")
        shown = browser.wait(
            "round 1 waits for a person", "KL to the start is", "Better?", " in round 0, now ", "Cost", "Decision"
        )
        name = f"form-{'new' if ui else 'old'}-{width}-{scheme}.png"
        browser.picture(self.pictures / name, 1000, width)
        assert browser.overflow() <= 0, name
        return shown


def night(folder: Path, judge: str) -> None:
    """The configs of a run that is better, one that asks, one that is rolled back, and one that fails."""
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(28)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text("def reward(prompt, response, answer):\n    return 0.0\n")
    told = {
        "better": JUDGE % judge,
        "asking": LENGTH + "gate: {max_kl: 1.0e-6, min_prompts: 2}\n",
        "worse": LENGTH + "gate: {alarm: roll_back}\n",
        "broken": f"scorer: {{kind: function, file: {folder / 'rewards.py'}, name: reward}}\n",
    }
    for name, more in told.items():
        base = BASE % ("1.0e-6" if name == "worse" else "10")
        (folder / f"{name}.yaml").write_text(f"name: {name}\npolicy: {{path: {model}}}\n{base}{more}")


@pytest.fixture(scope="module")
def morning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Morning]:
    folder = tmp_path_factory.mktemp("night")
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    pictures.mkdir(parents=True, exist_ok=True)
    with judge_server(longer_wins) as judge:
        night(folder, judge.url)
        with started_up(folder) as up, Browser(tmp_path_factory.mktemp("chromium")) as browser:
            runs = {}
            for name in STATES:
                done = up.prefloop("deploy", f"{name}.yaml", "--name", f"nightly-{name}", "--cron", "0 2 * * *")
                assert done.returncode == 0, done.stderr
                if name == "broken":
                    # What it needs is gone by the night.
                    (folder / "rewards.py").unlink()
                # It adds one round, as a scheduled one does, and no other when it goes on after a pause.
                runs[name] = up.start(f"iterative/nightly-{name}")
            for name, state in STATES.items():
                found = up.wait_for(runs[name], "COMPLETED", "PAUSED", "FAILED", "CRASHED")["state"]
                assert found["type"] == state, (name, found)
            browser.sign_in(f"http://127.0.0.1:{up.port}", up.secret)
            yield Morning(up, browser, runs, pictures)


def state_of(morning: Morning, name: str) -> dict[str, Any]:
    found: dict[str, Any] = morning.up.api.get(f"/flow_runs/{morning.flow_runs[name]}").raise_for_status().json()
    return found


def test_the_list_of_runs_says_what_ran_and_what_the_gates_decided(morning: Morning) -> None:
    told = {name: [tag for tag in state_of(morning, name)["tags"] if tag.startswith("gate:")] for name in STATES}
    assert told == {"better": ["gate:promote"], "asking": ["gate:pause"], "worse": ["gate:roll_back"], "broken": []}
    titles = [*TITLES.values(), "broken"]
    morning.looks("runs", "/runs", *titles, "Suspended", "Failed", "Completed", height=1400)


def test_a_finished_run_says_in_its_state_how_it_went_and_what_it_cost(morning: Morning) -> None:
    better, worse, broken = (state_of(morning, name)["state"]["message"] for name in ("better", "worse", "broken"))
    assert better.startswith("round 1: wins over the start ") and "gate: promote" in better
    assert "; labels " in better and " calls and " in better
    assert "gate: roll back" in worse and "labels" not in worse
    assert "rewards.py" in broken
    run = morning.flow_runs["better"]
    morning.looks("run", f"/runs/flow-run/{run}", TITLES["better"], "Completed")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("better", ("the start: wins ", "labels ", "nothing; what follows starts from this round")),
        ("worse", ("apart", "nothing; what follows starts from")),
        ("asking", ("KL to the start is", "decide. Press Resume on the flow run")),
    ],
)
def test_the_page_of_a_round_begins_with_what_a_person_asks(morning: Morning, name: str, said: tuple[str, ...]) -> None:
    path = f"/artifacts/artifact/{morning.artefact(name, 'round')}"
    shown = morning.looks(f"round-{name}", path, "Better?", "Changed", "Cost", "For you", *said, height=1600)
    assert shown.index("Better?") < shown.index("On held-out prompts")


def test_the_table_of_rounds_has_the_gate_where_a_phone_shows_it(morning: Morning) -> None:
    path = f"/artifacts/artifact/{morning.artefact('worse', 'rounds')}"
    morning.looks("rounds", path, "roll back", "wins vs start")
    rows = json.loads(morning.up.api.get(f"/artifacts/{morning.artefact('worse', 'rounds')}").json()["data"])
    assert list(rows[0])[:2] == ["round", "gate"]


def submit(morning: Morning, name: str) -> None:
    """Send the form. A busy server may refuse a request that the page does not repeat; a person presses again."""
    for _ in range(10):
        morning.browser.click("Submit")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if state_of(morning, name)["state"]["type"] != "PAUSED":
                return
            time.sleep(0.5)
    raise AssertionError(morning.browser.text())


def test_the_form_says_what_is_decided_on_and_the_run_goes_on_to_its_end(morning: Morning) -> None:
    run = morning.flow_runs["asking"]
    path = f"/runs/flow-run/{run}"
    morning.looks("asking", path, TITLES["asking"], "Suspended")
    message = state_of(morning, "asking")["state"]["message"]
    assert "limit 1e-06)" in message
    assert "Press Resume, or use: prefloop approve" in message and "same command" not in message
    browser = morning.browser
    for ui, width, scheme in [(NEW, *view) for view in VIEWS] + [(OLD, *view) for view in reversed(VIEWS)]:
        shown = morning.form(ui, path, width, scheme)
        assert "same command again" not in shown
    browser.fill("Decision", "promote")
    browser.fill("Reason", "reads well")
    browser.fill("By", "Ada")
    browser.picture(morning.pictures / "form-filled.png", 1000, 1280)
    submit(morning, "asking")
    ended = morning.up.wait_for(run, "COMPLETED", "FAILED", "CRASHED")
    assert ended["state"]["type"] == "COMPLETED" and "(a person: promote)" in ended["state"]["message"]
    approval = read_approval(RunFolder(morning.up.folder / "runs" / "asking"), 1)
    assert approval is not None
    assert (approval.decision, approval.by, approval.reason) == ("promote", "Ada", "reads well")
    assert "gate:promote" in ended["tags"] and "gate:pause" not in ended["tags"]
    morning.looks("approved", path, "asking · promote · iterative", "Completed")
