"""Prefect's server behind a guard that answers its own pages and programs of this machine, and no other web page.

``uvicorn --factory flows.prefect_api.guard:guarded_app`` serves it. A browser sends the page's address as ``Origin``,
and the name under which it found the server as ``Host``: a page elsewhere has another ``Origin``, and a name that was
made to point at 127.0.0.1 (DNS rebinding) another ``Host``. Prefect itself asks for the secret, but knows no hosts.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

# Another page could show the UI in a frame, and have its buttons clicked unseen.
FRAMELESS = {"X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'"}


class Guard:
    """Refuse requests and web sockets with a foreign ``Host`` (400) or ``Origin`` (403) before ``app`` sees them."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """``origins``: the addresses of the UI, such as ``http://127.0.0.1:4200``; their hosts are the server's."""
        self._app = app
        self._origins = frozenset(origin.lower() for origin in origins)
        self._hosts = frozenset(host for origin in self._origins for host in _host_headers(origin))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, web socket or lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, _frameless(send))
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, refusal[1])(scope, receive, send)
        else:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 400, "Host: not this server"
        if any(origin.lower() not in self._origins for origin in headers.getlist("origin")):
            return 403, "Origin: not a page of this server"
        return None


def guarded_app() -> ASGIApp:
    """Return Prefect's server for the origins in its setting. Without a secret there is none."""
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_CORS_ALLOWED_ORIGINS

    if not PREFECT_SERVER_API_AUTH_STRING.value():
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set: anybody on this machine could run commands")
    from prefect.server.api.server import create_app

    return Guard(create_app(), PREFECT_SERVER_CORS_ALLOWED_ORIGINS.value().split(","))


def _host_headers(origin: str) -> set[str]:
    """Return the values of ``Host`` for an origin: without its port, too, if that is the scheme's own."""
    parts = urlsplit(origin)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return {parts.netloc} | (
        {parts.netloc.rpartition(":")[0]} if parts.port is not None and parts.port == usual else set()
    )


def _frameless(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(FRAMELESS)
        await send(message)

    return sent
