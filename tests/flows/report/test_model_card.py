"""The card of a policy: what it tells, and that what others wrote in it does nothing."""

from dataclasses import replace
from typing import Any

import yaml
from markdown_it import MarkdownIt

from flows.report.facts import Estimate, GateFacts, RoundFacts
from flows.report.model_card import CardFacts, model_card
from pipeline.config import RunConfig

EVIL = "a](https://evil.example) <script>x</script> | `b` \x1b[2J"


def facts(round_: int, **metrics: Any) -> RoundFacts:
    fields: dict[str, Any] = dict.fromkeys(RoundFacts.__dataclass_fields__)
    fields |= {"round": round_, "metrics": metrics, "labels": (), "stages": (), "comparisons": ()}
    return RoundFacts(**fields)


def config(**more: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "name": "tiny",
        "mode": "iterative",
        "rounds": 2,
        "seed": 5,
        "policy": {"path": "owner/model"},
        "prompts": {"kind": "dataset", "path": "owner/prompts"},
        "scorer": {"kind": "classifier", "path": "/home/somebody/reward"},
        "loss": {"preset": "simpo", "gamma": 0.7},
        "training": {"lora": {"rank": 4}},
    }
    return RunConfig.model_validate({**plain, **more})


def card(given: RunConfig, *rounds: RoundFacts) -> tuple[dict[str, Any], str]:
    text = model_card(CardFacts(given, rounds, {"prompts": 70, "held_out": 9, "pairs": 0}, {"torch": "2.13"}))
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_it_tells_data_loss_rounds_versions_and_limits() -> None:
    last = replace(facts(1, reward=2.5, stop_rate=1.0), win_rate_vs_start=Estimate(0.75, 0.7, 0.8))
    gate = GateFacts("promote", ("reward rose",), 1, {})
    front, body = card(config(), facts(0, reward=1.25), replace(last, gate=gate))
    assert front["base_model"] == "owner/model" and front["datasets"] == ["owner/prompts"]
    assert front["library_name"] == "transformers" and "simpo" in front["tags"]
    for told in ("prompts that rounds could train on | 70", "no round trained on | 9", "gamma: 0.7", "arXiv"):
        assert told in body.replace("\\", "").replace("\u2060", "")
    for told in ("| 0 | 1.250 |", "| 1 | 2.500 |", "75.0% (95 % interval 70.0% to 80.0%)", "rank 4", "torch 2"):
        assert told in body.replace("\\", "")
    assert "promote (reward rose)" in body.replace("\\", "") and "Seed 5" in body and "Limits" in body
    assert "/home/somebody" not in body and "pairs | 0" not in body


def test_a_local_start_model_is_no_name_of_the_hub() -> None:
    front, body = card(config(policy={"path": "/home/somebody/start"}, prompts={"path": "/data/p.jsonl"}), facts(0))
    assert "base_model" not in front and "datasets" not in front
    assert "start after 0 rounds" in body and "/home" not in body and "/data" not in body


def test_what_others_wrote_is_text() -> None:
    given = config(prompts={"path": f"/data/{EVIL}.jsonl"})
    _, body = card(given, replace(facts(1), gate=GateFacts("promote", (EVIL,), 1, {})))
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    tokens = [token for block in blocks for token in (block, *(block.children or ()))]
    assert not {"link_open", "html_inline", "html_block", "image", "code_inline"} & {token.type for token in tokens}
    assert "\x1b" not in body and any("evil.example" in token.content for token in tokens)
