"""A child for tests: does as it is told, dying and hanging included."""

import os
import subprocess
import sys
import time
from typing import Any

from flows.workers.child import Progress, serve
from pipeline.errors import Paused, RunError, UserError

GREETING: list[str] = []


def init(args: dict[str, Any], progress: Progress) -> None:
    if "mistake" in args:
        raise UserError(args["mistake"])
    if args.get("slow"):
        time.sleep(60)
    GREETING.append(args.get("greeting", ""))


def echo(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    print("echo was called")
    return {"greeting": GREETING[0], "args": args, "pid": os.getpid()}


def tell(args: dict[str, Any], progress: Progress) -> list[str]:
    """Print the environment; the names of the variables in it."""
    print("as", os.environ, flush=True)
    print("and", *os.environ.values(), file=sys.stderr, flush=True)
    return [*os.environ]


def count(args: dict[str, Any], progress: Progress) -> str:
    for done in range(args["total"]):
        time.sleep(args.get("seconds", 0))
        progress({"done": done + 1})
    return "counted"


def fail(args: dict[str, Any], progress: Progress) -> None:
    raise {"user": UserError, "run": RunError, "pause": Paused, "other": ZeroDivisionError}[args["kind"]](args["text"])


def die(args: dict[str, Any], progress: Progress) -> None:
    print("about to die", flush=True)
    if args["how"] == "exit":
        os._exit(7)
    os.kill(os.getpid(), args["how"])


def hang(args: dict[str, Any], progress: Progress) -> None:
    """Busy and deaf, with a child of its own; says who they are first."""
    print("about to hang", flush=True)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    progress({"pids": [os.getpid(), grandchild.pid]})
    while True:
        pass


if __name__ == "__main__":
    serve({"init": init, "echo": echo, "tell": tell, "count": count, "fail": fail, "die": die, "hang": hang})
