"""The labels stage against a judge that fails: what is paid for is kept, what is missing is asked again or stops it."""

import json
import os
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.run import RunConfig
from pipeline.errors import RunError, UserError
from pipeline.storage.manifest import StageKey
from pipeline.storage.rows import read_groups, read_preference_rows, write_groups
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Message, Pair, Prompt, Response
from tests.faults.fire import Fire, Kill
from tests.support.judge_server import JudgeServer, judge_server, longer_wins

RUN_STAGE = """
import json, sys
from pathlib import Path
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config import RunConfig
from pipeline.storage.run_folder import RunFolder
config = RunConfig.model_validate(json.loads(sys.argv[2]))
run_stage(Context(RunFolder(Path(sys.argv[1])), config), 1, "labels")
"""


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer_wins) as made:
        yield made


def plain(server: JudgeServer, labelling: dict[str, Any] | None = None, **endpoint: Any) -> dict[str, Any]:
    url = {"base_url": server.url, "model": "judge", "backoff": 0.0, "attempts": 1, "timeout": 60.0, "concurrency": 2}
    return {
        "name": "judged", "mode": "iterative", "policy": {"path": "model"}, "prompts": {"path": "prompts.jsonl"},
        "labelling": labelling or {}, "scorer": {"kind": "judge", "server": {**url, **endpoint}},
        "loss": {"preset": "sppo"},
    }  # fmt: skip


def with_samples(root: Path, shards: int = 3, prompts: int = 2) -> RunFolder:
    """A run whose first round has samples: per prompt three responses of one, two and three letters."""
    run = RunFolder(root)
    writer = run.stage(1, "samples").begin(StageKey({}, {}, 0))
    responses = tuple(Response("x" * n, (n,), (-1.0,), "stop") for n in (1, 2, 3))
    for shard in range(shards):
        groups = [Group(Prompt((Message("user", f"{shard} {n}"),)), (1,), responses) for n in range(prompts)]
        write_groups(writer.folder / f"shard_{shard:05d}.parquet", groups)
    writer.commit(6, {})
    return run


def label(run: RunFolder, config: dict[str, Any], notes: list[str] | None = None) -> dict[str, Any]:
    def report(done: int, total: int, note: str) -> None:
        if notes is not None:
            notes.append(f"{done}/{total} {note}")

    run_stage(Context(run, RunConfig.model_validate(config), report), 1, "labels")
    return run.stage(1, "labels").require().metrics


def test_wins_costs_and_cache_are_in_the_manifest_and_the_progress(server: JudgeServer, tmp_path: Path) -> None:
    config = plain(server, price={"input": 1.0, "output": 2.0})
    notes: list[str] = []
    first = with_samples(tmp_path / "first")
    facts = label(first, config, notes)
    assert (facts["labels"], facts["missing_labels"], facts["reward"]) == (18, 0, 0.5)
    assert (facts["questions"], facts["calls"], facts["cache_hit_rate"]) == (36, 36, 0.0)
    assert facts["labels_per_second"] > 18 / (first.stage(1, "labels").require().seconds + 0.001)
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (3600, 360)
    assert facts["cost"] == pytest.approx(36 * 120e-6) and facts["orders_that_disagree"] == 0
    (groups,) = {group.wins for group in read_groups(tmp_path / "first" / "round_001" / "labels")}
    assert groups == ((0.5, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 1.0, 0.5))
    assert (
        notes[-1].startswith("6/6 ")
        and "labels/s, 0% from the cache, 36 calls, 3,960 tokens, cost 0.00432" in notes[-1]
    )
    # Another run beside it, of another loss, pays nothing.
    facts = label(with_samples(tmp_path / "second"), {**config, "loss": {"preset": "dpo"}})
    assert (facts["cache_hit_rate"], facts["calls"], facts["labels"]) == (1.0, 0, 18) and len(server.seen) == 36
    label(with_samples(tmp_path / "third"), {**config, "labelling": {"cache": str(tmp_path / "own.sqlite")}})
    assert len(server.seen) == 72 and (tmp_path / "own.sqlite").is_file()


def test_win_probabilities_of_pairs_are_the_judge_s(server: JudgeServer, tmp_path: Path) -> None:
    run = with_samples(tmp_path / "run")
    config = plain(server)
    label(run, config)
    run_stage(Context(run, RunConfig.model_validate(config)), 1, "pairs")
    pairs = list(read_preference_rows(run.stage(1, "pairs").folder))
    assert len(pairs) == 6
    for pair in pairs:
        assert isinstance(pair, Pair)
        assert (pair.win_probability, pair.win_probability_rejected) == pytest.approx((2.5 / 3, 0.5 / 3))
        assert (len(pair.chosen.text), len(pair.rejected.text)) == (3, 1)


def test_it_goes_on_above_the_least_yield_and_says_what_is_missing(server: JudgeServer, tmp_path: Path) -> None:
    server.faults = ["429 0", "close", "truncated", "no choices", "500", "empty"]
    facts = label(with_samples(tmp_path / "run"), plain(server, {"min_yield": 0.5}, concurrency=1))
    missing = {"connection": 1, "empty_answer": 2, "malformed_answer": 1, "rate_limited": 1, "server_error": 1}
    assert facts["missing_by_cause"] == missing and facts["missing_labels"] == 3 and facts["labels"] == 15


def test_below_it_it_stops_with_nothing_lost(server: JudgeServer, tmp_path: Path) -> None:
    run, config = with_samples(tmp_path / "run"), plain(server, {"min_yield": 0.8}, concurrency=1)
    server.faults = [""] * 12 + ["500"] * 12
    with pytest.raises(
        RunError, match=r"6 of 12 responses got a score, below labelling.min_yield 0.8.*server_error 12"
    ):
        label(run, config)
    assert len(server.seen) == 24 and run.stage(1, "labels").manifest() is None
    facts = label(run, config)
    assert (facts["labels"], facts["missing_labels"]) == (18, 0)
    assert len(server.seen) == 24 + 24 and facts["calls"] == 48 and facts["failed_calls"] == 12


def test_verdicts_that_are_none_stop_it_and_are_shown(server: JudgeServer, tmp_path: Path) -> None:
    server.judge = lambda question: "Well, well."
    run = with_samples(tmp_path / "run")
    with pytest.raises(RunError, match=r"0 of 6 responses .* by cause: unparsed 12; it said: 'Well, well\.'"):
        label(run, plain(server))
    assert len(server.seen) == 12
    with pytest.raises(RunError, match="unparsed 12"):
        label(run, plain(server))
    assert len(server.seen) == 12, "asking again would say the same"


def test_a_used_up_budget_stops_it_and_a_larger_one_goes_on(server: JudgeServer, tmp_path: Path) -> None:
    run = with_samples(tmp_path / "run")
    with pytest.raises(RunError, match="budget 11"):
        label(run, plain(server, {"min_yield": 0.9}, budget={"calls": 13}))
    facts = label(run, plain(server, {"min_yield": 0.9}, budget={"calls": 36}))
    assert facts["calls"] == len(server.seen) == 36 and facts["missing_labels"] == 0


@pytest.mark.whole
def test_kills_in_the_midst_of_calls_and_of_files_lose_no_label(server: JudgeServer, tmp_path: Path) -> None:
    run, config = with_samples(tmp_path / "run", shards=2, prompts=20), plain(server, concurrency=1)
    (run.root / "config.yaml").write_text(json.dumps(config))
    fire = Fire(run.root, [sys.executable, "-c", RUN_STAGE, str(run.root), json.dumps(config)], os.environ)
    places = [("judge", 30), ("judge", 0), ("fsync", 1), ("write", 2), ("renamed", 2), ("judge", 60), ("rename", 3)]
    for point, after in places:
        assert fire.shoot(Kill("script", point, after), patience=60)
    fire.finish()
    assert [(kill.point, kill.after) for kill in fire.done] == places
    fire.compare({})
    assert fire.lost.shards_twice == fire.lost.orphans == fire.lost.left_over == fire.lost.tracebacks == []
    manifest = run.stage(1, "labels").require()
    assert manifest.rows == 40 and manifest.metrics["labels"] == 120
    # A call that was under way when a kill came is all that can be paid for twice.
    assert len(server.seen) - 240 <= sum(point == "judge" for point, _ in places)


def test_a_refused_key_is_the_user_s_to_mend(server: JudgeServer, tmp_path: Path) -> None:
    server.always = "401"
    with pytest.raises(UserError, match=r"scorer\.server\.api_key_env: the server refuses a request without a key"):
        label(with_samples(tmp_path / "run"), plain(server))


def test_what_the_server_said_is_kept_and_shown(server: JudgeServer, tmp_path: Path) -> None:
    refusals = iter([{"error": {"message": "too long for us", "code": "context_length_exceeded"}}, {"error": "other"}])
    server.reply = lambda body: (400, next(refusals, {"error": "a third"}))
    run = with_samples(tmp_path / "run")
    with pytest.raises(RunError, match=r"by cause: refused 12; refused: 'too long for us'"):
        label(run, plain(server, concurrency=1))
    assert len(server.seen) == 12
    sent = [*server.seen]

    def some(body: dict[str, Any]) -> tuple[int, Any]:
        if len(server.seen) - len(sent) <= 4:
            return 400, {"error": f"refusal {len(server.seen) - len(sent)}"}
        return 200, {"choices": [{"message": {"content": "Verdict: tie"}, "finish_reason": "stop"}]}

    server.reply = some
    facts = label(run, plain(server, {"min_yield": 0.1}, concurrency=1))
    assert facts["missing_by_cause"] == {"refused": 4} and facts["said_by_cause"] == {"refused": "refusal 1"}


def test_an_account_without_credit_stops_the_stage_and_the_same_command_goes_on(
    server: JudgeServer, tmp_path: Path
) -> None:
    run, config = with_samples(tmp_path / "run"), plain(server, concurrency=1)
    broke = {"error": {"message": "You exceeded your quota", "type": "insufficient_quota"}}
    server.faults = [""] * 7
    server.always = "402"
    with pytest.raises(UserError, match=r"scorer\.server: the account has no credit left: .*402"):
        label(run, config)
    server.reply = lambda body: (429, broke)
    with pytest.raises(UserError, match=r"no credit left: .*: You exceeded your quota\. All labels so far are kept"):
        label(run, config)
    assert len(server.seen) == 9
    server.reply, server.always = None, ""
    facts = label(run, config)
    assert (facts["labels"], facts["missing_labels"]) == (18, 0) and len(server.seen) == 9 + 36 - 7


def test_two_runs_at_the_same_time_share_a_cache(server: JudgeServer, tmp_path: Path) -> None:
    config = plain(server, price={"input": 1.0, "output": 2.0})
    runs = [with_samples(tmp_path / name, shards=4) for name in ("one", "other")]
    with ThreadPoolExecutor(2) as pool:
        made = [*pool.map(label, runs, [config, config])]
    assert [facts["labels"] for facts in made] == [24, 24] and not any(facts["missing_labels"] for facts in made)
    wins = [[group.wins for group in read_groups(run.stage(1, "labels").folder)] for run in runs]
    assert wins[0] == wins[1] == [((0.5, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 1.0, 0.5))] * 8
    # Each run counts what it paid for itself. A question that both had under way is asked twice at most.
    assert sum(facts["calls"] for facts in made) == len(server.seen) and 48 <= len(server.seen) <= 96
    assert sum(facts["cost"] for facts in made) == pytest.approx(len(server.seen) * 120e-6)
    facts = label(with_samples(tmp_path / "third", shards=4), config)
    assert (facts["cache_hit_rate"], facts["calls"]) == (1.0, 0)


@pytest.mark.whole
def test_many_files_need_few_descriptors(server: JudgeServer, tmp_path: Path) -> None:
    config = plain(server)
    config["scorer"]["pairs_per_prompt"] = 1
    run = with_samples(tmp_path / "run", shards=100, prompts=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 25, hard))
    try:
        facts = label(run, config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert facts["questions"] == 200 and facts["calls"] == 200 and facts["missing_labels"] == 100
