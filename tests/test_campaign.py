"""The campaign of kills counts what its lanes give out, and ends when one of them fails."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, Row


class Planned(Campaign):
    """Runs that end after at most 7 kills, and one that fails."""

    fails_at = -1

    def _run(self, seed: int, kills: int, environment: dict[str, str]) -> Row:
        if seed == self.fails_at:
            raise OSError("no room")
        return {"seed": seed, "kills": min(kills, 7), "home": environment["PREFECT_HOME"], "nothing_lost": True}


def lanes(campaign: Campaign) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(campaign.lane, range(2)))


def test_lanes_give_out_as_many_kills_as_were_asked_for(tmp_path: Path) -> None:
    campaign = Planned(tmp_path, [], kills=50, kills_a_run=10, seed=3, expected={})
    lanes(campaign)
    written = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert sum(run["kills"] for run in written) == campaign.total() == 50
    assert sorted(run["seed"] for run in written) == [*range(3, 3 + len(written))]
    assert {run["home"] for run in written} <= {str(tmp_path / f"prefect_{lane}") for lane in range(2)}


def test_a_lane_that_fails_ends_the_others(tmp_path: Path) -> None:
    campaign = Planned(tmp_path, [], kills=10**9, kills_a_run=10, seed=0, expected={})
    campaign.fails_at = 20
    with pytest.raises(OSError, match="no room"):
        lanes(campaign)
    assert campaign.total() < 10**6
