"""Plans of runs of images: passes by arithmetic, memory as the network's own code holds it."""

import json
from pathlib import Path

import pytest
import torch

from flows.planning.cards.traced import LiveBytes
from flows.planning.images.image_plan import plan_images
from flows.planning.images.image_table import print_image_plan
from flows.planning.images.traced_network import trace_network
from pipeline.config import Lora
from pipeline.images.image_folder import load_image_policy
from pipeline.images.networks import predict
from pipeline.images.prompt_ids import network_settings
from tests.support.places import ROOT
from tests.support.tiny_diffusion import KINDS

SIZE = ["prompts.prompts=200", "held_out.prompts=48", "prompts_per_round=96", "policy.channels=[16]", "sampler.steps=6"]
SIZE += ["sampling.n=4", "training.epochs=7", "training.batch_size=32", "training.score.draws=1"]


def test_a_round_is_counted_in_passes_and_timed_at_given_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"sampling": 100.0, "training": 10.0}
    settings = [*SIZE, "training.max_steps=15"]
    plan = plan_images([ROOT / "configs" / "images.yaml"], settings, tmp_path / "run", rates, probe=False)
    images = 96 * 4 + 48
    passes = {"sampling": images * 6, "labelling": images, "scoring": 96 * 2 * 7 + 3 * 48 * 4, "training": 15 * 32 * 2}
    assert plan.round.passes() == passes
    expected = {"sampling": images * 0.06, "labelling": None, "scoring": passes["scoring"] / 30, "training": 96.0}
    assert plan.seconds == pytest.approx(expected)
    assert {stage.stage for stage in plan.stages} == {"warm start", "sampling", "reference, evaluation", "training"}
    assert json.loads(json.dumps(plan.plain()))["parameters"]["trained"] == plan.network.total
    print_image_plan(plan)
    said = capsys.readouterr().out
    assert "2,592" in said and "token" not in said and "prompts_per_round" not in said
    # 200 prompts, 48 of them held out.
    plan = plan_images(
        [ROOT / "configs" / "images.yaml"], [*settings, "prompts_per_round=300"], tmp_path, {}, probe=False
    )
    print_image_plan(plan)
    assert "prompts_per_round: 300, but there are 152 prompts to train on" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_memory_without_data_is_that_of_a_real_step(kind: str, tmp_path: Path) -> None:
    policy = load_image_policy(KINDS[kind](tmp_path / kind))
    traced = trace_network(network_settings(tmp_path / kind), None, trained=4, forward=(2,))
    assert traced.total == traced.trained == sum(p.numel() for p in policy.network.parameters())
    told = policy.encode(
        ["a", "b", "c", "d"] if policy.condition == "text" else [None] * 4 if not policy.classes else [0] * 4
    )

    def step() -> None:
        found = predict(policy.network, torch.randn(4, *policy.shape), torch.ones(4), told)
        found.square().mean().backward()

    step()
    with LiveBytes(policy.network.parameters()) as live:
        step()
    # The real prompt may be shorter than the most states.
    assert traced.activations == pytest.approx(live.peak, rel=0.25)
    assert 0 < traced.forward[2] < traced.activations


def test_an_adapter_is_what_is_trained(tmp_path: Path) -> None:
    folder = KINDS["text"](tmp_path / "policy")
    whole = trace_network(network_settings(folder), None, trained=2, forward=())
    adapter = trace_network(network_settings(folder), Lora(rank=2), trained=2, forward=())
    assert adapter.total == whole.total + adapter.trained and 0 < adapter.trained < whole.trained
