"""When a worker tells of new data: once it is complete, and once the run before has ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Running, Suspended

from flows.commands.deployments.arrivals import Arrivals
from flows.prefect_api.deployed.automations import install_automations
from flows.prefect_api.server import prefect_api

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    """Client of a private server, as ``prefloop run`` starts it."""
    with prefect_api(tmp_path_factory.mktemp("prefect") / "server.log"), get_client(sync_client=True) as made:
        yield made


@pytest.mark.parametrize("state", [Running(), Suspended()], ids=["running", "waiting for a person"])
def test_data_that_arrives_before_a_run_has_ended_is_told_of_afterwards(
    client: SyncPrefectClient, tmp_path: Path, state: State[object]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat sat"}\n')
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"name: tiny\nmode: iterative\nrounds: 1\npolicy: {{path: {tmp_path}}}\nprompts: {{path: {prompts}}}\n"
        "sampler: {kind: transformers}\nscorer: {kind: length, target_words: 12}\n"
    )
    name = tmp_path.name
    parameters = {"run_dir": str(tmp_path / "run"), "config": [str(config)], "settings": []}
    flow = client.create_flow_from_name("iterative")
    deployment = client.create_deployment(flow_id=flow, name=name, parameters=parameters)
    install_automations(client, deployment, f"iterative/{name}", None)
    arrivals = Arrivals(tmp_path / "seen.json")
    assert deployment not in arrivals.look(client), "what was there before is not new"
    flow_run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(flow_run.id, state, force=True)
    prompts.write_text('{"prompt": "the cat sat"}\n{"prompt": "a dog ran"}\n')
    assert [deployment in arrivals.look(client) for _ in range(3)] == [False] * 3
    client.set_flow_run_state(flow_run.id, Completed(), force=True)
    assert [deployment in arrivals.look(client) for _ in range(2)] == [True, False]
