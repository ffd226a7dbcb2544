"""IPO-MD for real: two rounds whose pairs are drawn from a mixture, with vLLM and with transformers."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from tests.support.tiny_loop import prefloop

pytestmark = pytest.mark.whole
IPO_MD = ("loss.preset=ipo", "training.reference=fixed", "sampling.mixture={reference: start, weight: 0.125}")


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_the_second_round_samples_from_policy_and_start_and_checks_both(
    home: dict[str, str], loop_config: Path, tmp_path: Path, kind: str
) -> None:
    engine = [] if kind == "vllm" else ["sampler={kind: transformers, dtype: float32}"]
    done = prefloop(home, "run", loop_config, *IPO_MD, *engine, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(tmp_path / "run")
    first, second = (run.stage(round_, "samples").require().metrics for round_ in (1, 2))
    assert "mixture" not in first
    told: Any = second["mixture"]
    assert (told["reference"], told["weight"], told["of"]) == ("start", 0.125, "round_000/policy")
    handshake: Any = second["weight_handshake"]
    assert handshake["max_difference"] < 2e-3
    if kind == "vllm":
        assert 0.5 < told["effective_share"] < 1 and told["weight_handshake"]["max_difference"] < 2e-3
        assert not (run.stage(2, "samples").folder / "proposals").exists()
    else:
        assert handshake["mixed_difference"] < 2e-3
    sampled = {r.token_ids for group in read_groups(run.stage(2, "samples").folder) for r in group.responses}
    assert all(len(group.responses) == 4 for group in read_groups(run.stage(2, "samples").folder))
    pairs = list(read_preference_rows(run.stage(2, "pairs").folder))
    assert len(pairs) > 10 and all({p.chosen.token_ids, p.rejected.token_ids} <= sampled for p in pairs)  # type: ignore[union-attr]
    assert prefloop(home, "verify", tmp_path / "run").returncode == 0
    again = prefloop(home, "run", loop_config, *IPO_MD, *engine, "--run-dir", tmp_path / "run")
    assert again.returncode == 0 and run.stage(2, "samples").require().metrics == second
