"""A chat-completions server that judges as it is told, and fails in every way that a server can."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class JudgeServer(ThreadingHTTPServer):
    """``judge`` turns a question into what the model says, or into log-probabilities of its first token.

    ``faults``: for the n-th request what goes wrong, "" for nothing; ``always`` what goes wrong with all others.
    ``reply``: answers all of them itself, if set: a status, and a body as JSON, text or bytes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, judge: Callable[[str], str | dict[str, float]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.judge = judge
        self.faults: list[str] = []
        self.always = ""
        self.reply: Callable[[Body], tuple[int, Any]] | None = None
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        self.seen: list[Body] = []
        self.headers_seen: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append(body)
            server.headers_seen.append(dict(self.headers))
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            fault = server.faults.pop(0) if server.faults else server.always
        if server.reply is None:
            self._answer(body, fault)
            return
        code, given = server.reply(body)
        text = given if isinstance(given, str | bytes) else json.dumps(given)
        self._send(code, text.encode() if isinstance(text, str) else text)

    def _answer(self, body: Body, fault: str) -> None:
        match fault:
            case "slow":
                # Longer than any client waits.
                self.server.over.wait(60)
                self.close_connection = True
            case "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not self.server.over.wait(0.1):
                    self.wfile.write(b" ")
                self.close_connection = True
            case "processing":
                while not self.server.over.wait(0.05):
                    self.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                self.close_connection = True
            case "close":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            case "truncated":
                self._send(200, json.dumps(self._completion(body)).encode()[:-20])
            case "cut body":
                self._send(200, json.dumps(self._completion(body)).encode(), promise=40)
            case "no choices":
                self._send(200, b'{"choices": []}')
            case "empty":
                self._send(200, b'{"choices": [{"message": {"content": ""}}]}')
            case "null":
                self._send(200, b'{"choices": [{"message": {"content": null}}]}')
            case "other json":
                self._send(200, b'["what?"]')
            case "":
                self._send(200, json.dumps(self._completion(body)).encode())
            case _:
                code, _, after = fault.partition(" ")
                echoed = {"error": f"no, {self.headers['Authorization']}"}
                self._send(int(code), json.dumps(echoed).encode(), after=after)

    def _completion(self, body: Body) -> Body:
        said = self.server.judge(body["messages"][0]["content"])
        choice: Body = {"message": {"role": "assistant", "content": said if isinstance(said, str) else "A"}}
        if not isinstance(said, str):
            top = [{"token": token, "logprob": logprob} for token, logprob in said.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return {"choices": [choice], **({"usage": self.server.usage} if self.server.usage else {})}

    def _send(self, code: int, data: bytes, after: str = "", promise: int = 0) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data) + promise))
        if after:
            self.send_header("Retry-After", after)
        self.end_headers()
        self.wfile.write(data)
        if promise:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def judge_server(judge: Callable[[str], str | dict[str, float]]) -> Iterator[JudgeServer]:
    """The server, listening while the block runs."""
    with JudgeServer(judge) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def shown(question: str, name: str) -> str:
    """The text that stands in a fence of our own templates."""
    return question.partition(f"<<<{name} ")[2].partition("\n")[2].partition(f"END OF {name}>>>")[0].rpartition("\n")[0]


def longer_wins(question: str) -> str:
    """A judge without a liking for a place: the longer response, or a tie."""
    one, other = (len(shown(question, f"RESPONSE {name}")) for name in "AB")
    return "Both try.\nVerdict: " + ("A" if one > other else "B" if other > one else "tie")
