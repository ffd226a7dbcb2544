"""A run's folder before it is opened: made, or found to be this run's. Torch-free."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from flows.loop.object_store.address import LINK_FILE, WORK_VARIABLE, read_link
from flows.loop.object_store.held import hold_run
from flows.run_folder.lease import LEASE_FILE, hold
from flows.run_folder.links import require_own_folders
from flows.run_folder.storage_errors import FULL, storage_error
from pipeline.config import RunConfig
from pipeline.config.files import changed_fields, dump_config
from pipeline.errors import RunLockedError, UserError, first_lines
from pipeline.storage.atomic import write_text
from pipeline.storage.layout import LAYOUT_FILE, note_version
from pipeline.storage.run_folder import RunFolder

# Files that a kill may leave behind at the start of a run.
STARTED = {".lock", "config.yaml.tmp", LEASE_FILE, LAYOUT_FILE, f"{LAYOUT_FILE}.tmp", LINK_FILE}


def prepare_run(config: RunConfig, root: Path, extend: bool = False) -> RunFolder:
    """Make ``root`` the folder of this run, or check that it already is.

    Settings that do not change results may differ from the folder's. With ``extend``, ``rounds`` may grow.

    Raises:
        UserError: the folder holds another config (the message lists the changed fields), or is not a run folder.
    """
    run = RunFolder(root)
    if run.config_file.is_file():
        _refuse_other_config(run.config(), config, root, extend)
    elif root.is_file():
        raise UserError(f"{root}: is a file, not a folder")
    elif root.is_dir() and {file.name for file in _entries(root)} - STARTED:
        raise UserError(f"{root}: not empty and not a run folder (no config.yaml); choose another --run-dir")
    try:
        root.mkdir(parents=True, exist_ok=True)
        require_own_folders(root)
        with hold_run(root):
            note_version(root, run.config_file)
            write_text(run.config_file, dump_config(config))
    except OSError as error:
        if error.errno in FULL:
            raise (storage_error(error, root, "config.yaml") or error) from None
        raise UserError(f"{root}: cannot write there ({error.strerror})") from None
    return run


def forget_unused(root: Path) -> None:
    """Remove the work folder of a URL in which nothing was begun, and what is empty then of the folders over it."""
    link = read_link(root)
    if link is None:
        return
    # Whoever is beginning there keeps it.
    with suppress(RunLockedError, OSError), hold(root):
        if {file.name for file in root.iterdir()} <= STARTED:
            shutil.rmtree(root)
            # Those of the prefix, the bucket and the scheme, and runs, but no folder that the user has named.
            above = len(link.address.prefix.split("/")) + (1 if os.environ.get(WORK_VARIABLE) else 2)
            for folder in root.parents[:above]:
                folder.rmdir()


def _entries(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from None


def _refuse_other_config(old: RunConfig, new: RunConfig, root: Path, extend: bool) -> None:
    before, after = old.identity(), new.identity()
    grown = new.mode == "iterative" and new.rounds > old.rounds
    if extend and grown:
        before["rounds"] = after["rounds"]
    changes = changed_fields(before, after)
    if not changes:
        return
    hint = "add --extend to go on with more rounds" if grown and not extend else "choose another --run-dir"
    raise UserError(f"{root} holds a run with another config; nothing was changed ({hint}):\n{first_lines(changes, 8)}")
