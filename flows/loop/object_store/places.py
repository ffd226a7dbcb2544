"""Where a command finds its run: a path as it is, or the work folder of a URL, brought up to date. Torch-free."""

from pathlib import Path

from flows.loop.object_store.address import StoreError, is_url, parse_address
from pipeline.errors import UserError


def fetched_run(place: str) -> Path:
    """Return the run folder ``place``; of a URL, the work folder with the stages that are complete there.

    Raises:
        UserError: a mistake in the URL, or no run there.
        RunError: the store does not answer, refuses, or is damaged.
    """
    return _at_hand("RUN", place, required=True) if is_url(place) else Path(place)


def run_place(place: str) -> Path:
    """Return the folder for a run that is begun or goes on. Raises as ``fetched_run``, but needs no run there."""
    return _at_hand("--run-dir", place, required=False) if is_url(place) else Path(place)


def local_path(place: str) -> Path:
    """Return the path that a command writes to, or works in, if that is on a local disk. Raises ``UserError``."""
    if is_url(place):
        raise UserError(
            f"{place.rpartition('@')[2]}: a URL, but this must be a local path; URLs name the run folders of "
            "run, plan, show, report, verify, pairs, export and approve"
        )
    return Path(place)


def _at_hand(field: str, place: str, *, required: bool) -> Path:
    address = parse_address(field, place)
    from flows.loop.object_store.transfer import fetch

    try:
        return fetch(address, required=required)
    except StoreError as error:
        if (address.work_folder / "config.yaml").exists():
            raise
        raise UserError(
            f"{field}: {error.why}; nothing was begun here. Allowed: a store that answers, at AWS_ENDPOINT_URL unless "
            "it is Amazon's, with credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE)"
        ) from None
