"""A child for tests: does as it is told, dying and hanging included."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.workers.messages import Done, Progress, Reply, Request, Service
from flows.workers.serving import serve_calls
from pipeline.errors import Paused, RunError, UserError

GREETING: list[str] = []


class Init(Request, frozen=True, tag="init"):
    greeting: str = ""
    mistake: str | None = None
    slow: bool = False


class Echo(Request, frozen=True, tag="echo"):
    args: Any = None


class Echoed(Reply, frozen=True, tag="echoed"):
    greeting: str
    args: Any
    pid: int


class Tell(Request, frozen=True, tag="tell"):
    """Print the environment and a key in every way; the names of the variables in it."""


class Told(Reply, frozen=True, tag="told"):
    names: list[str]


class Count(Request, frozen=True, tag="count"):
    total: int
    seconds: float = 0.0


class Counted(Progress, frozen=True, tag="counted"):
    """``pids``: of a child that hangs, itself and its own child."""

    done: int = 0
    pids: tuple[int, ...] = ()


class Fail(Request, frozen=True, tag="fail"):
    kind: str
    text: str


class Die(Request, frozen=True, tag="die"):
    how: str | int


class Hang(Request, frozen=True, tag="hang"):
    """Be busy (or asleep) and deaf, with a child of its own; say who they are first."""

    busy: bool = True


class Read(Request, frozen=True, tag="read"):
    """Read ``file`` again and again, slowly, for some seconds, here or in a child; say nothing."""

    file: str
    seconds: float
    in_child: bool = False


class Lie(Request, frozen=True, tag="lie"):
    """Break the protocol: this number is not a list of names."""

    names: Any


Send = Callable[[Counted], None]
SERVICE = Service("tests.support.obedient_child", Counted)


def init(request: Init, send: Send) -> Done:
    if request.mistake is not None:
        raise UserError(request.mistake)
    if request.slow:
        time.sleep(60)
    GREETING.append(request.greeting)
    return Done()


def echo(request: Echo, send: Send) -> Echoed:
    print("echo was called")
    return Echoed(GREETING[0], request.args, os.getpid())


def tell(request: Tell, send: Send) -> Told:
    print("as", os.environ, flush=True)
    print("and", *os.environ.values(), file=sys.stderr, flush=True)
    key = os.environ.get("JUDGE", "nothing")
    for letter in f"letters: {key}\n":
        print(letter, end="", flush=True)
    sys.stdout.buffer.write(f"buffer: {key[:5]}".encode())
    sys.stdout.buffer.flush()
    sys.stdout.buffer.write(f"{key[5:]}\n".encode())
    sys.stdout.buffer.flush()
    os.write(2, f"descriptor: {key}\n".encode())
    subprocess.run([sys.executable, "-c", "import os; print('subprocess:', os.environ.get('JUDGE'))"], check=True)
    native = ctypes.CDLL(None)
    native.puts(f"native: {key}".encode())
    native.fflush(None)
    print(f"no line break: {key}", end="", flush=True)
    return Told([*os.environ])


def count(request: Count, send: Send) -> Done:
    for done in range(request.total):
        time.sleep(request.seconds)
        send(Counted(done + 1))
    return Done()


def fail(request: Fail, send: Send) -> Done:
    raise {"user": UserError, "run": RunError, "pause": Paused, "other": ZeroDivisionError}[request.kind](request.text)


def die(request: Die, send: Send) -> Done:
    print("about to die", flush=True)
    if isinstance(request.how, str):
        os._exit(7)
    os.kill(os.getpid(), request.how)
    return Done()


def hang(request: Hang, send: Send) -> Done:
    print("about to hang", flush=True)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    send(Counted(pids=(os.getpid(), grandchild.pid)))
    while True:
        time.sleep(0 if request.busy else 60)


def read(request: Read, send: Send) -> Done:
    if request.in_child:
        said = f"from tests.support.obedient_child import slowly; slowly({request.file!r}, {request.seconds})"
        subprocess.run([sys.executable, "-c", said], check=True)
    else:
        slowly(request.file, request.seconds)
    return Done()


def slowly(file: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        Path(file).read_bytes()
        time.sleep(0.05)


def lie(request: Lie, send: Send) -> Told:
    return Told(request.names)


if __name__ == "__main__":
    told = {Init: init, Echo: echo, Tell: tell, Count: count, Fail: fail, Die: die, Hang: hang, Lie: lie}
    serve_calls({**told, Read: read})
