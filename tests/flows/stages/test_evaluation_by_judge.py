"""A labeller that compares: a round's responses are held against those of the start policy, not scored alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.stages.evaluation import _wins
from flows.stages.labels.shards import open_accounts
from flows.stages.measures.parts import win_rates
from pipeline.storage.rows import write_groups
from pipeline.types import Group, Message, Prompt, Response
from reward_models.build import build_labeller
from tests.support.judge_server import JudgeServer, judge_server, longer_wins
from tests.support.tiny_run import make_job, open_context


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer_wins) as made:
        yield made


def groups(*texts: tuple[str, ...]) -> list[Group]:
    return [
        Group(Prompt((Message("user", f"p{n}"),)), (1,), tuple(Response(t, (1,), (), "stop") for t in given))
        for n, given in enumerate(texts)
    ]


def test_win_rates_are_of_duels_with_the_earlier_policy(server: JudgeServer, tmp_path: Path) -> None:
    judge = f"scorer={{kind: judge, server: {{base_url: '{server.url}', model: judge}}}}"
    context = open_context(make_job(tmp_path / "job"), tmp_path / "runs" / "x", "iterative", judge)
    earlier = context.run.stage(0, "evaluation").folder / "sampled"
    earlier.mkdir(parents=True)
    write_groups(earlier / "rows.parquet", groups(("aa", "aa"), ("b", "bbb"), ("c", "c")))
    assert context.config.scorer is not None
    with open_accounts(context, 1, "evaluation") as accounts:
        labeller = build_labeller(context.config.scorer, accounts)
        sampled = groups(("aaaa", "aaa"), ("bb", "bb"), ("c", ""))
        metrics = win_rates(_wins(context, 1, sampled, labeller))
    # Two wins; a win and a loss; a tie of equal texts and a loss.
    assert metrics["win_rate_vs_start"] == pytest.approx((1.0 + 0.5 + 0.25) / 3)
    # The round before is the start: those duels cost nothing more.
    assert metrics["win_rate_vs_previous"] == metrics["win_rate_vs_start"] and len(server.seen) == 10
