"""The command line: ``prefloop COMMAND``; each command is a function of ``flows.commands``.

Exit codes: 0 done, 1 a failure while running, 2 a mistake in config or data, 3 the run waits for a person,
130 interrupted.
"""

import os
import sys

import typer

from flows.commands.cli.builds import MODEL_COMMANDS, require_fitting_torchvision
from flows.commands.cli.deployments import deploy, serve, ui, up
from flows.commands.cli.models import export, push, reward_model
from flows.commands.cli.operating import approve
from flows.commands.cli.preparing import check, init, judge_test, losses, plan
from flows.commands.cli.results import pairs, report, show, verify
from flows.commands.cli.runs import run, sweep
from flows.prefect_api.environment import make_files_private, prepare_environment
from pipeline.errors import Paused, RunError, UserError
from pipeline.safe_text import redacted, visible

LONGEST_MESSAGE = 8000
# Commands whose files are to be given away.
AS_THE_USER_S_OTHER_FILES = frozenset(("init", "export", "report", "losses"))

# Commands that start their processes themselves.
STARTED_ONCE = frozenset(("run", "sweep", "reward-model"))

app = typer.Typer(
    name="prefloop",
    help="Online preference learning: sample, label, pair, train, evaluate, repeat.",
    no_args_is_help=True,
    # Rich markup would swallow defaults in brackets.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run,
    sweep,
    init,
    show,
    report,
    verify,
    check,
    judge_test,
    plan,
    pairs,
    losses,
    reward_model,
    export,
    push,
    approve,
    up,
    deploy,
    serve,
    ui,
):
    app.command(command.__name__.replace("_", "-"))(command)


def main() -> None:
    """Entry point: turn errors, and a run's pause, into messages and exit codes."""
    prepare_environment()
    try:
        require_no_launcher()
        if not MODEL_COMMANDS.isdisjoint(sys.argv[1:2]):
            require_fitting_torchvision()
        if AS_THE_USER_S_OTHER_FILES.isdisjoint(sys.argv[1:2]):
            make_files_private()
        app()
    except UserError as error:
        _say(error)
        sys.exit(2)
    except RunError as error:
        _say(error)
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}")
        sys.exit(1)
    except Paused as pause:
        _say(pause)
        sys.exit(3)


def require_no_launcher() -> None:
    """Raise ``UserError`` if torchrun or ``accelerate launch`` has started this command several times in one folder."""
    count = os.environ.get("WORLD_SIZE", "1")
    if STARTED_ONCE.isdisjoint(sys.argv[1:2]) or "TORCHELASTIC_RUN_ID" not in os.environ or count == "1":
        return
    instead = "give run the file of accelerate as accelerate=FILE, and on each of several machines --machine-rank"
    if "reward-model" in sys.argv[1:2]:
        instead = "a reward model trains in one process"
    raise UserError(f"a launcher has started this command {count} times (WORLD_SIZE); start it once: {instead}")


def _say(error: Exception | str) -> None:
    # Messages quote values from untrusted files.
    print(f"prefloop: {visible(redacted(error), LONGEST_MESSAGE)}", file=sys.stderr)


if __name__ == "__main__":
    main()
