"""The process of a run that was started from Python: ``python -m prefloop.child PARENT ANSWER ASKED``.

``ASKED`` is JSON; the last word goes to the file descriptor ``ANSWER``: how the run ended, and its folder or a message.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from flows.prefect_api.environment import make_files_private, prepare_environment
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import redacted, visible
from pipeline.sampling.watchdog import end_with_parent

_LONGEST_MESSAGE = 8000


def main() -> None:
    """Carry out the run that the arguments ask for."""
    parent, answer, asked = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    end_with_parent(parent)
    prepare_environment()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = json.dumps(_ended(asked))
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        file.write(said)


def _ended(asked: dict[str, Any]) -> tuple[str, str]:
    try:
        make_files_private()
        return "done", _run(asked)
    except UserError as error:
        return "user", _text(error)
    except RunError as error:
        return "run", _text(error)
    except Paused as pause:
        return "pause", _text(pause)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return "run", _text(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        return "interrupted", "interrupted; the same call goes on from the last complete shard"


def _run(asked: dict[str, Any]) -> str:
    from flows.commands.run import run_config, run_dir_of
    from pipeline.config.files import load_config

    files = [Path(asked["config"])]
    given = None if asked["run_dir"] is None else Path(asked["run_dir"])
    run_config(files, [], given, asked["extend"], asked["until"], asked["redo_from"])
    return str(run_dir_of(load_config(files), given))


def _text(error: Exception | str) -> str:
    # Messages quote values from untrusted files.
    return visible(redacted(error), _LONGEST_MESSAGE)


if __name__ == "__main__":
    main()
