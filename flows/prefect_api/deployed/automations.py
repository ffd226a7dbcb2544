"""Automations of Prefect's server for a deployment: tell people, start a dead run again, start when data arrives.

They are those of ``configs/prefect/automations.yaml``, with the deployment's id filled in.
"""

from collections.abc import Iterator
from pathlib import Path
from string import Template
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import JsonValue

from pipeline.config.files import read_yaml
from pipeline.errors import UserError

SHIPPED = Path(__file__).parents[3] / "configs" / "prefect" / "automations.yaml"
# How the name of the automation ends that starts a deployment when data arrives; workers look for it.
ON_DATA = ": start when data arrives"
_BLOCK = "$block"


def install_automations(client: SyncPrefectClient, deployment: UUID, name: str, block: str | None) -> list[str]:
    """Create the automations of a deployment, or put them back to what is shipped; return their names.

    Args:
        client: of the server.
        deployment: the deployment's id.
        name: its name, ``FLOW/NAME``.
        block: the id of the block that people are told with; None: they are not.
    """
    wanted = [*_automations(str(deployment), name, block)]
    for automation in wanted:
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
    return [automation.name for automation in wanted]


def started_by_data(client: SyncPrefectClient) -> list[UUID]:
    """Return the deployments that an automation starts when data arrives."""
    return [*_deployments(client.read_automations())]


def _automations(deployment: str, name: str, block: str | None) -> Iterator[AutomationCore]:
    fill = {"deployment": deployment, "name": name, **({} if block is None else {"block": block})}
    shipped = read_yaml(SHIPPED)["automations"]
    assert isinstance(shipped, list)
    for entry in shipped:
        if block is None and _reads_block(entry):
            continue
        yield AutomationCore.model_validate(_filled(entry, fill))


def _reads_block(value: JsonValue) -> bool:
    match value:
        case dict():
            return any(_reads_block(one) for one in value.values())
        case list():
            return any(_reads_block(one) for one in value)
        case _:
            return value == _BLOCK


def _filled(value: JsonValue, fill: dict[str, str]) -> JsonValue:
    match value:
        case dict():
            return {key: _filled(one, fill) for key, one in value.items()}
        case list():
            return [_filled(one, fill) for one in value]
        case str():
            return Template(value).substitute(fill)
        case _:
            return value


def notification_block(client: SyncPrefectClient, named: str) -> str:
    """Return the id of the block ``TYPE/NAME``. Raises ``UserError`` if there is none that sends notifications."""
    kind, _, name = named.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise UserError(
            f"--notify: {named}: Prefect's server has no such block; TYPE/NAME of one under Blocks in the UI, such as "
            "slack-webhook/ops"
        ) from None
    schema = block.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise UserError(f"--notify: {named}: sends no notifications; allowed: a block that can notify")
    return str(block.id)


def _deployments(automations: list[Automation]) -> Iterator[UUID]:
    for automation in automations:
        if automation.enabled and automation.name.endswith(ON_DATA):
            for action in automation.actions:
                if action.type == "run-deployment" and action.deployment_id is not None:
                    yield action.deployment_id
