"""A stand-in of the Hugging Face hub: repositories, LFS blobs and commits, in memory, on 127.0.0.1."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was brought there.

    ``repositories``: by kind and name, whether each is private; ``files``: of each one, by path; ``stored``: digests of
    LFS blobs, in the order in which they came; ``failing``: how many commits are still to fail.
    """

    token: str
    url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: int = 0


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _answer(self, plain: Any, status: int = 200) -> None:
        body = json.dumps(plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _allowed(self) -> bool:
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self) -> None:
        if not self._allowed():
            return
        name = self.path.removeprefix("/api/")
        if name not in self.hub.repositories:
            self._answer({"error": "Repository not found"}, 404)
            return
        plain = {"id": name.partition("/")[2], "private": self.hub.repositories[name], "siblings": [], "sha": "0" * 40}
        self._answer(plain)

    def do_PUT(self) -> None:
        blob = self._body()
        self.hub.blobs[sha256(blob).hexdigest()] = blob
        self.hub.stored.append(sha256(blob).hexdigest())
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._allowed():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], **_mode(one["path"])} for one in json.loads(body)["files"]]
            self._answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._wanted(one) for one in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer({"error": "not here"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "me"
        name = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
        known = name in self.hub.repositories
        if not known:
            # The library sends either, by its version.
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[name] = bool(hidden)
        self._answer({"url": f"{self.hub.url}/{owner}/{asked['name']}"}, 409 if known else 200)

    def _wanted(self, one: dict[str, Any]) -> dict[str, Any]:
        there = one["oid"] in self.hub.blobs
        actions = {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}"}}
        return {"oid": one["oid"], "size": one["size"], **({} if there else {"actions": actions})}

    def _commit(self, body: bytes) -> None:
        if self.hub.failing:
            self.hub.failing -= 1
            self._answer({"error": "try again"}, 500)
            return
        name = self.path.removeprefix("/api/").partition("/commit/")[0]
        held = self.hub.files.setdefault(name, {})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                held[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                held[entry["value"]["path"]] = self.hub.blobs[entry["value"]["oid"]]
        made = {"commitUrl": f"{self.hub.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
        self._answer(made)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _mode(path: str) -> dict[str, Any]:
    return {"uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False, "oid": None}


@contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    """A hub that takes ``token`` for the length of the block."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
