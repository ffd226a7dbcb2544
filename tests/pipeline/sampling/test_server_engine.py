"""A user's own server: its weights stay, its key comes from the environment and appears nowhere."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.errors import RunError, UserError
from pipeline.models.chat import Chat
from pipeline.sampling.sampler import SampleRequest
from pipeline.sampling.server_engine import ServerEngine
from tests.support.tiny_model import tiny_tokenizer

KEY = "sk-never-to-be-seen"


class Server(ThreadingHTTPServer):
    """Answers what it was given, and remembers what it was asked."""

    models: list[dict[str, Any]]
    choice: dict[str, Any]
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = [{"id": "other", "max_model_len": 8}, {"id": "mine", "max_model_len": 16}]
        self.choice = {"token_ids": [9, 6], "logprobs": {"token_logprobs": [-0.5, -0.25]}}
        self.seen: list[tuple[str | None, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer({"data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.headers["Authorization"], body))
        self._answer({"choices": [self.server.choice]})

    def _answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content if self.server.status == 200 else {"error": "no"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def connect(server: Server, model: str | None = "mine") -> ServerEngine:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    settings = config.ServerSampler(base_url=url, model=model, api_key_env="PREFLOOP_TEST_KEY")
    return ServerEngine("unused", Chat(tiny_tokenizer(), config.ChatSettings()), settings)


def test_a_request_carries_ids_seed_and_limits_and_its_answer_becomes_a_response(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFLOOP_TEST_KEY", KEY)
    engine = connect(server)
    (responses,) = engine.sample([SampleRequest((1, 3, 20), 5)], config.SamplingSettings(n=2, max_tokens=100))
    assert [(r.token_ids, r.logprobs, r.finish_reason) for r in responses] == [((9, 6), (-0.5, -0.25), "stop")] * 2
    keys, bodies = zip(*server.seen, strict=True)
    assert set(keys) == {f"Bearer {KEY}"}
    assert {(b["model"], tuple(b["prompt"]), b["max_tokens"]) for b in bodies} == {("mine", (1, 3, 20), 13)}
    assert len({b["seed"] for b in bodies}) == 2
    assert set(bodies[0]["stop_token_ids"]) == {2, 6}
    engine.close()


def test_no_key_in_the_environment_sends_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFLOOP_TEST_KEY", raising=False)
    engine = connect(server)
    list(engine.sample([SampleRequest((1,), 5)], config.SamplingSettings(n=1)))
    assert server.seen[0][0] is None
    engine.close()


def test_its_weights_stay_as_they_are(server: Server) -> None:
    engine = connect(server)
    assert engine.load("/other/policy") == "unchanged"
    assert engine.load("/other/policy", fresh=True) == "unchanged"
    engine.close()


def test_after_an_adapter_its_own_model_is_asked_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    engine = connect(server)
    asked = []
    for path in (str(tmp_path), "/the/base", "/the/base"):
        found = engine.load(path)
        server.seen.clear()
        list(engine.sample([SampleRequest((1,), 5)], config.SamplingSettings(n=1)))
        asked.append((found, server.seen[0][1]["model"]))
    assert [found for found, _ in asked] == ["reload", "reload", "unchanged"]
    assert asked[0][1].startswith("policy-") and [name for _, name in asked[1:]] == ["mine", "mine"]
    engine.close()


def test_the_first_model_is_taken_where_none_is_named(server: Server) -> None:
    engine = connect(server, model=None)
    assert engine.context == 8
    engine.close()


def test_a_model_that_it_does_not_serve(server: Server) -> None:
    with pytest.raises(UserError, match=r"sampler\.model: the server has no 'third'; it serves \['other', 'mine'\]"):
        connect(server, model="third")


def test_a_server_that_is_not_vllm(server: Server) -> None:
    engine = connect(server)
    server.choice = {"text": "words"}
    with pytest.raises(UserError, match="returns no token ids"):
        list(engine.sample([SampleRequest((1,), 5)], config.SamplingSettings(n=1)))
    engine.close()
    server.models = [{"id": "mine"}]
    with pytest.raises(UserError, match="is not a vLLM server"):
        connect(server)


def test_a_refusal_shows_the_server_s_words_and_not_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFLOOP_TEST_KEY", KEY)
    server.status = 401
    with pytest.raises(RunError, match=r"status 401\): \{\"error\": \"no\"\}") as caught:
        connect(server)
    assert KEY not in str(caught.value)
    server.shutdown()
    server.server_close()
    with pytest.raises(RunError, match="does not answer") as caught:
        connect(server)
    assert KEY not in str(caught.value)
