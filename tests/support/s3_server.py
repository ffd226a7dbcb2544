"""moto's S3 server in a process of its own: real HTTP, to be killed and started again at the same address.

It answers one request at a time: moto checks a condition and writes in two steps, which two threads could enter at
once. Its objects live as long as the process.
"""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.places import ROOT

BUCKET = "runs"
_SERVES = """
import io
import socket
import sys
import threading
from pathlib import Path
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    def log_request(self, *_):
        pass

one = threading.Lock()
inner = DomainDispatcherApplication(create_backend_app)
refusing, gone = (Path(sys.argv[2]) / name for name in ("refusing", "gone"))
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

def app(environ, start):
    if refusing.exists():
        start("403 Forbidden", [("Content-Type", "application/xml")])
        return [DENIED]
    if gone.exists():
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
    with one:
        return [b"".join(inner(environ, start))]

make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=Quiet).serve_forever()
"""


@dataclass
class S3Server:
    """``switches``: a folder; a file ``refusing`` in it makes the server answer 403, ``gone`` hang up on all."""

    port: int
    switches: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it; the keys are no one's."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it, and make the bucket."""
        command = [sys.executable, "-c", _SERVES, str(self.port), str(self.switches)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._made():
            assert self.process.poll() is None and time.monotonic() < deadline, "moto's server does not start"
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill it; its objects are gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def failing(self, how: str) -> Iterator[None]:
        """Refuse, or be gone, while the block runs."""
        switch = self.switches / how
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    def _made(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            connection.request("PUT", f"/{BUCKET}")
            return connection.getresponse().status == 200
        except OSError:
            return False
