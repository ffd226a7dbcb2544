"""``prefloop up`` attacked for real: by a page of another origin, under another name, and without the secret.

The page elsewhere even knows the secret, so nothing but the guard refuses it.
"""

import base64
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.browser import CHROMIUM, Browser
from tests.support.prefloop_up import Up, started_up

pytestmark = pytest.mark.whole
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PAGE = """<!doctype html><body><script>
const api = "API", headers = {"Authorization": "Basic TOKEN"}, body = '{"name": "from elsewhere"}', outcome = {};
const post = more => fetch(api + "/flows/", {method: "POST", body, ...more}).then(answer => answer.status);
const json = {...headers, "Content-Type": "application/json"};
const open = path => new Promise((opened, failed) => {
  const socket = new WebSocket(api.replace("http", "ws") + path, ["prefect"]);
  socket.onopen = () => opened("open");
  socket.onerror = () => failed();
});
const tries = {
  cors: () => post({headers: json}),
  plain: () => post({mode: "no-cors", headers: {"Content-Type": "text/plain"}}).then(() => "sent"),
  read: () => fetch(api + "/admin/version", {headers}).then(answer => answer.text()),
  events: () => open("/events/in"),
  logs: () => open("/logs/out"),
};
(async () => {
  for (const [name, go] of Object.entries(tries)) outcome[name] = await go().catch(() => "refused");
  document.body.innerText = "done " + JSON.stringify(outcome);
})();
</script></body>"""


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started_up(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
def elsewhere(up: Up, tmp_path: Path) -> Iterator[str]:
    """A page of another server, which attacks."""
    token = base64.b64encode(up.secret.encode()).decode()
    page = PAGE.replace("API", f"http://127.0.0.1:{up.port}/api").replace("TOKEN", token)
    (tmp_path / "attack.html").write_text(page)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/attack.html"
        server.shutdown()


def flows_of(up: Up) -> list[str]:
    return [flow["name"] for flow in up.api.post("/flows/filter", json={}).raise_for_status().json()]


def test_server_and_worker_know_each_other_by_the_secret(up: Up) -> None:
    def online() -> bool:
        workers = up.api.post("/work_pools/prefloop/workers/filter", json={}).raise_for_status().json()
        return [one["status"] for one in workers] == ["ONLINE"]

    up.until(online)
    said = up.log.read_text()
    assert f"the line in {up.folder}/prefect/prefloop.secret" in said
    for file in (up.log, up.folder / "prefect" / "prefloop-server.log", up.folder / "prefect" / "prefect.db"):
        assert up.secret.partition(":")[2].encode() not in file.read_bytes(), file


def test_nothing_is_done_or_told_without_the_secret(up: Up) -> None:
    job = {"name": "theirs", "flow_id": "00000000-0000-0000-0000-000000000000", "job_variables": {"command": "id"}}
    wrong = up.secret[:-1] + ("a" if up.secret[-1] != "a" else "b")
    for headers in ({}, {"Authorization": "Basic " + base64.b64encode(wrong.encode()).decode()}):
        with httpx.Client(base_url=up.api.base_url, headers=headers, timeout=200) as stranger:
            for answer in (
                stranger.post("/flows/", json={"name": "theirs"}),
                stranger.post("/deployments/", json=job),
                stranger.post("/flow_runs/filter", json={}),
                stranger.get("/admin/settings"),
                stranger.get("/work_pools/prefloop"),
            ):
                assert (answer.status_code, answer.json()) == (401, {"exception_message": "Unauthorized"})
    assert flows_of(up) == []


def test_another_name_and_another_origin_are_refused_with_the_secret(up: Up) -> None:
    for headers, status in (
        ({"Host": "evil.example"}, 400),
        ({"Host": f"evil.example:{up.port}"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ):
        assert up.api.post("/flows/", json={"name": "theirs"}, headers=headers).status_code == status
    assert flows_of(up) == []


@needs_chromium
def test_a_page_of_another_origin_can_do_and_read_nothing(up: Up, elsewhere: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        shown = browser.open(elsewhere, "done ")
    outcome = json.loads(shown.partition("done ")[2])
    # What is sent without asking first is always "sent": its sender cannot see the answer.
    assert outcome == {"cors": "refused", "plain": "sent", "read": "refused", "events": "refused", "logs": "refused"}
    assert flows_of(up) == []


@needs_chromium
def test_a_name_that_is_made_to_point_here_shows_nothing(up: Up, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", "--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        assert browser.open(f"http://evil.example:{up.port}/dashboard", "this server") == "Host: not this server"


@needs_chromium
def test_the_ui_asks_for_the_secret_once_and_works(up: Up, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    ui = f"http://127.0.0.1:{up.port}"
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{ui}/work-pools", "Login")
        browser.picture(pictures / "login.png")
        browser.sign_in(ui, up.secret)
        browser.picture(pictures / "signed_in.png")
        browser.open(f"{ui}/work-pools", "prefloop", "Process")
        browser.picture(pictures / "work_pools.png")
