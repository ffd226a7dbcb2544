"""Keys that Prefect keeps: Secret blocks of its server, given to a run as environment variables. Never in a file."""

import os
from collections.abc import Mapping

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.prefect_api.access import connected, lasting_api
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.safe_text import name_keys

_WAY_OUT = (
    'python -c "from getpass import getpass; from prefect.blocks.system import Secret; '
    "Secret(value=getpass()).save('{block}')\""
)


def provide_secrets(config: RunConfig) -> None:
    """Set the variables that ``secrets`` names, for this process and its children; one that is set already stays.

    Raises ``UserError`` if no server is running, or it has no such block, or the block holds no text.
    """
    wanted = {variable: block for variable, block in config.secrets.items() if not os.environ.get(variable)}
    if not wanted:
        return
    api = lasting_api()
    if api is None:
        first = next(iter(wanted))
        raise UserError(
            f"secrets.{first}: block {wanted[first]} is kept by a Prefect server, and none is running; start one with "
            f"'prefloop up', set PREFECT_API_URL to yours, or set {first} itself"
        )
    with connected(api):
        found = _read(wanted, api.url)
    os.environ.update(found)
    # Hidden in logs and errors from here on.
    name_keys(config.model_dump(mode="json"))


def _read(wanted: Mapping[str, str], url: str) -> dict[str, str]:
    found: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        for variable, block in wanted.items():
            try:
                value = client.read_block_document_by_name(block, "secret", include_secrets=True).data.get("value")
            except ObjectNotFound:
                raise UserError(
                    f"secrets.{variable}: Prefect's server at {url} has no Secret block {block}; make one under Blocks "
                    f"in the UI, or with: {_WAY_OUT.format(block=block)}"
                ) from None
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.UNPROCESSABLE_ENTITY:
                    raise
                raise UserError(f"secrets.{variable}: {block} is no name of a block") from None
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"secrets.{variable}: Secret block {block} holds no text; save a text in it")
            found[variable] = value.strip()
    return found
