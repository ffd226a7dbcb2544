"""``prefloop.run``: a run from Python, in a process of its own. Torch-free.

The process is the one that ``prefloop run`` would be: nothing of Prefect, its event loop, environment or file modes
comes into a notebook's process, and no memory stays. It ends when its parent does.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from pipeline.config.files import Layer, Tree, dump_config, load_config
from pipeline.errors import Paused, RunError, UserError
from prefloop.results import Run

ConfigLayer = str | os.PathLike[str] | Mapping[str, Any] | BaseModel
_CHILD = __name__.removesuffix("running") + "child"
# Lines of its output that tell why a process without a last word ended.
_LAST_LINES = 12
# For ending its own children, the sampler and the trainer, and writing down what is complete.
_STOP_SECONDS = 60.0


def run(
    config: ConfigLayer | Sequence[ConfigLayer],
    *,
    run_dir: "str | os.PathLike[str] | None" = None,
    extend: bool = False,
    until: str | None = None,
    redo_from: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Start a run, or continue it, as ``prefloop run`` does; return when it is complete.

    ``run("quickstart", rounds=1, training={"learning_rate": 1e-4})`` and ``run({"name": "mine", ...})`` are calls.

    Args:
        config: a YAML file, the name of a shipped config, a mapping of settings or another run's ``config``; or several
            of these, each laid over the ones before.
        run_dir: the run's folder or URL; by default ``runs/NAME``.
        extend: add rounds to a run whose folder has fewer than the config.
        until: stop after this stage, such as ``1:pairs``.
        redo_from: set aside this stage and everything made from it, and make them again.
        quiet: print nothing.
        settings: laid over the config: sections as mappings, or ``**{"training.learning_rate": 1e-4}``.

    Raises:
        UserError: a mistake in config or data.
        RunError: a failure while running; the same call goes on from the last complete shard.
        Paused: the run waits for a person, for example because its gate asks; the message says how to answer.
        KeyboardInterrupt: the kernel was interrupted; the same call goes on.
    """
    from flows.loop.object_store.places import run_place

    loaded = load_config([*_layers(config), ("settings", _nested(settings))])
    asked = {
        "run_dir": None if run_dir is None else str(run_place(os.fspath(run_dir))),
        "extend": extend,
        "until": until,
        "redo_from": redo_from,
    }
    with TemporaryDirectory(prefix="prefloop-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(loaded), encoding="utf-8")
        kind, text = _carry_out({**asked, "config": str(file)}, quiet=quiet)
    match kind:
        case "done":
            return Run(Path(text))
        case "user":
            raise UserError(text)
        case "pause":
            raise Paused(text)
        case "interrupted":
            raise KeyboardInterrupt(text)
    raise RunError(text)


def _layers(config: ConfigLayer | Sequence[ConfigLayer]) -> list[Layer]:
    sources = config if isinstance(config, list | tuple) else [config]
    return [_layer(source) for source in sources]


def _layer(source: object) -> Layer:
    match source:
        case BaseModel():
            return "config", source.model_dump(mode="json")
        case Mapping():
            return "config", _nested(source)
        case str() | os.PathLike():
            return Path(source)
    raise UserError(f"config: a {type(source).__name__}; allowed: a file, a shipped config's name, a mapping, a config")


def _nested(settings: Mapping[str, Any]) -> Tree:
    """Return the settings as a config file would hold them: names without dots, plain lists, paths as text."""
    tree: Tree = {}
    for name, value in settings.items():
        *outer, last = str(name).split(".")
        section = tree
        for part in outer:
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"settings: {name}: {part!r} is also given as a value")
            section = inner
        plain = _plain(value)
        old = section.get(last)
        section[last] = {**old, **plain} if isinstance(old, dict) and isinstance(plain, dict) else plain
    return tree


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            return value.model_dump(mode="json")
        case Mapping():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case os.PathLike():
            return os.fspath(value)
        case list() | tuple():
            return [_plain(inner) for inner in value]
    return value


def _carry_out(asked: Mapping[str, object], *, quiet: bool) -> tuple[str, str]:
    """Return how the child ended and its last word: the run's folder, or the message of an error."""
    told, tell = os.pipe()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with open(told, encoding="utf-8") as answer:  # noqa: PTH123 - a descriptor
        with _started(asked, tell) as child:
            os.close(tell)
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    last.append(line.rstrip())
                    if not quiet:
                        print(line, end="", flush=True)
                code = child.wait()
            finally:
                _end(child)
        words = answer.read()
    if not words:
        return "run", "\n".join([f"the run's process ended with exit code {code}; its last lines:", *last])
    kind, text = json.loads(words)
    return str(kind), str(text)


def _started(asked: Mapping[str, object], tell: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", _CHILD, str(os.getpid()), str(tell), json.dumps(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[tell],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        process_group=0,
        encoding="utf-8",
        errors="replace",
    )


def _end(child: "subprocess.Popen[str]") -> None:
    """End the child, if it runs, and what it leaves behind."""
    if child.poll() is None:
        child.terminate()
        try:
            child.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
