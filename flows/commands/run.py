"""``prefloop run``: from config files to a finished run folder."""

import os
import sys
from pathlib import Path

from flows.loop.finished import report_if_finished
from flows.loop.object_store.address import read_link
from flows.loop.object_store.held import hold_run
from flows.loop.preparation import prepare_run
from flows.planning.cards.refusal import require_card
from flows.prefect_api.environment import log_to_file
from flows.preflight.check import check_new
from flows.preflight.understand import understood
from flows.report.terminal import print_table, read_rounds
from flows.run_folder.redo import FOLDER, parse_stage, set_aside
from flows.workers.local import stays_warm
from flows.workers.machines.cluster.placing import placing_lines
from flows.workers.pool.seating import seating_of
from pipeline.config import LocalCluster, RunConfig
from pipeline.config.files import load_config
from pipeline.errors import Paused, UserError
from pipeline.storage.cores import usable_cores
from pipeline.storage.run_folder import RunFolder
from pipeline.training.distributed.launch import read_launch
from pipeline.types.counts import number_of


def run_config(
    files: list[Path],
    settings: list[str],
    run_dir: Path | None,
    extend: bool,
    until: str | None,
    redo_from: str | None = None,
    machine: int | None = None,
) -> None:
    """Run the config in this process, up to the stage ``until`` (``ROUND:STAGE``) if given.

    ``redo_from``, of the same form: first set aside everything from this stage on. ``machine``: rank of this machine,
    if the accelerate config names several; those of rank 1 and on only train.

    Raises ``UserError``, ``RunError``, or ``Paused`` if a round's gate asks a person.
    """
    if _follows(files, settings, run_dir, machine):
        return
    root, config = _understood(files, settings, run_dir)
    if until is not None:
        parse_stage("--until", until, config)
    redo = None if redo_from is None else parse_stage("--from", redo_from, config)
    require_card(config)
    check_new(config, root)
    run = prepare_run(config, root, extend)
    if redo is not None:
        with hold_run(root):
            moved = set_aside(run, config, *redo)
        print(f"set aside in {root / FOLDER}: {', '.join(moved)}", file=sys.stderr)
    announce(config, root)
    try:
        report = report_if_finished(run, config, until) if redo is None else None
        if report is None:
            log_to_file(root / "logs" / "prefect.log")
            report = run_flow(config, run, until)
    except Paused:
        print_table(root, read_rounds(root))
        raise
    print_table(root, read_rounds(root))
    if until is not None:
        print(f"stopped after {until}; the same command without --until goes on")
    print(f"report: {report}")


def _follows(files: list[Path], settings: list[str], run_dir: Path | None, machine: int | None) -> bool:
    """Return False on the machine that drives the run; on others, train until the run ends, and return True."""
    config = load_config(files, settings)
    launch = read_launch(config, machine)
    if launch is None or launch.machines == 1:
        return False
    root = run_dir_of(config, run_dir)
    if read_link(root) is not None:
        raise UserError(
            f"--run-dir: a URL, but {config.accelerate} says num_machines: {launch.machines}; allowed: a folder on "
            "storage that all machines share"
        )
    if launch.machine == 0:
        return False
    # What torch's client says of a connection that ends belongs to no user.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from flows.workers.machines.follower import FollowingMachine

    def load() -> RunConfig:
        return _understood(files, settings, run_dir)[1]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    FollowingMachine(launch, root, load, config.sampler.start_timeout, say).follow()
    return True


def run_dir_of(config: RunConfig, given: Path | None) -> Path:
    """Return the folder of a run."""
    return (given or Path("runs") / config.name).resolve()


def dry(files: list[Path], settings: list[str], run_dir: Path | None, until: str | None) -> None:
    """Print the run's stages and which would run; writes nothing. Raises ``UserError`` or ``RunError``."""
    from flows.commands.dry_run import print_dry_run

    root, config = _understood(files, settings, run_dir)
    if until is not None:
        parse_stage("--until", until, config)
    print_dry_run(config, root, until)


def _understood(files: list[Path], settings: list[str], run_dir: Path | None) -> tuple[Path, RunConfig]:
    """Return the run's folder, and the config with what its data is found to be, which is said."""
    config = load_config(files, settings)
    if config.secrets:
        from flows.prefect_api.secret_blocks import provide_secrets

        provide_secrets(config)
    root = run_dir_of(config, run_dir)
    config, read = understood(RunFolder(root).carried(config), root)
    for line in read:
        print(line, file=sys.stderr)
    return root, config


def run_flow(config: RunConfig, run: RunFolder, until: str | None = None) -> str:
    """Run the flow for the config's mode; return the path of the report.

    Raises what the flow raises, and ``KeyboardInterrupt`` if Prefect has ended it.
    """
    from prefect.exceptions import Abort, TerminationSignal

    from flows.iterative import iterative
    from flows.offline import offline
    from flows.prefect_api.server import ServerLostError, go_on_without, prefect_api

    flow = iterative if config.mode == "iterative" else offline
    try:
        with prefect_api(run.root / "logs" / "server.log"):
            return str(flow(run_dir=str(run.root), until=until))
    except ServerLostError as error:
        # A run does not depend on the server: stages are complete or not, whatever it knows.
        go_on_without(error)
    except (TerminationSignal, Abort) as error:
        raise KeyboardInterrupt from error


def announce(config: RunConfig, root: Path) -> None:
    """Announce the run in a few lines, including the choices that change results, and who has which cards."""
    training = config.training
    lines = [
        f"{config.name}: {config.mode}, {number_of(config.rounds, 'round')}, seed {config.seed} -> {root}",
        f"  loss {config.loss.preset}, reference {training.reference}, optimiser {training.optimiser_state}, "
        f"learning rate {training.learning_rate:g}, {config.sampler.kind} sampler, {usable_cores()} CPUs",
        *(f"  {line}" for line in placing_lines(config)),
        f"  logs: {root / 'logs'}",
    ]
    if config.mode == "iterative" and isinstance(config.cluster, LocalCluster):
        lines[2:2] = [f"  {line}" for line in seating_of(config).lines(stay=stays_warm(config))]
    print("\n".join(lines), file=sys.stderr)
