"""Whom the guard before Prefect's server answers: its own pages and programs of this machine."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flows.prefect_api.guard import Guard, guarded_app

OWN = "http://127.0.0.1:4200"
SOCKET = "ws://127.0.0.1:4200/in"


async def made(request: Request) -> PlainTextResponse:
    return PlainTextResponse("made", 201)


async def sent(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("open")


APP = Starlette(routes=[Route("/api/flows", made, methods=["GET", "POST", "OPTIONS"]), WebSocketRoute("/in", sent)])


def client(*further: str, url: str = OWN) -> TestClient:
    return TestClient(Guard(APP, [OWN, "http://localhost:4200", *further]), base_url=url)


@pytest.mark.parametrize("origin", [None, OWN, "http://localhost:4200", "HTTP://LocalHost:4200"])
def test_its_own_pages_and_programs_are_answered(origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    assert client().post("/api/flows", headers=headers).status_code == 201
    with client().websocket_connect(SOCKET, headers=headers) as socket:
        assert socket.receive_text() == "open"


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:4201", "https://127.0.0.1:4200"),
        *("http://127.0.0.1:4200.evil.example", "http://evil.example:4200", "http://[::1]:4200", "file://"),
    ],
)
def test_another_page_is_refused(origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = client().request(method, "/api/flows", headers={"Origin": origin})
        assert (answer.status_code, answer.text) == (403, "Origin: not a page of this server")
        assert "access-control-allow-origin" not in answer.headers
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client().websocket_connect(SOCKET, headers={"Origin": origin}),
    ):
        pass
    assert refused.value.code == 1008


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:4200", "127.0.0.1", "127.0.0.1:80", "0.0.0.0:4200", "127.0.0.1.evil:4200", ""],
)
def test_another_name_of_the_server_is_refused(host: str) -> None:
    answer = client().post("/api/flows", headers={"Host": host})
    assert (answer.status_code, answer.text) == (400, "Host: not this server")
    with pytest.raises(WebSocketDisconnect) as refused, client().websocket_connect(SOCKET, headers={"Host": host}):
        pass
    assert refused.value.code == 1008


def test_a_proxy_that_is_named_is_answered() -> None:
    proxy = "https://prefect.example.com"
    through = client(proxy, url=proxy)
    assert through.post("/api/flows", headers={"Origin": proxy}).status_code == 201
    assert client(proxy).post("/api/flows", headers={"Origin": f"{proxy}.evil"}).status_code == 403


def test_no_page_shows_it_in_a_frame() -> None:
    headers = client().get("/api/flows").headers
    assert (headers["x-frame-options"], headers["content-security-policy"]) == ("DENY", "frame-ancestors 'none'")


def test_without_a_secret_there_is_no_server() -> None:
    with pytest.raises(SystemExit, match="PREFECT_SERVER_API_AUTH_STRING is not set"):
        guarded_app()
