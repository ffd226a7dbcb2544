"""The advantages stage: 0 as the first value, the carried head's values later, whitened over the round's tokens."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.preflight.check import check_run
from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.training import advantages as stage
from flows.stages.training.examples import examples_with_reference, round_examples
from pipeline.errors import RunError, UserError
from pipeline.models.output_head import at_tokens
from pipeline.models.policy import load_policy
from pipeline.models.token_logps import TokenLogps
from pipeline.storage.rows import read_rows
from pipeline.training.auxiliary.heads import carried_value_head
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from tests.support.tiny_run import begin, make_job, open_context, supply, train

LOSS = "loss={preset: apa_token, eta: 1, gae_lambda: 0.9, head_learning_rate: 0.01}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("advantages"))


@pytest.fixture(scope="module")
def two_rounds(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Two rounds of iterative training; the second stops before its policy."""
    context = open_context(job, tmp_path_factory.mktemp("run"), "iterative", LOSS)
    check_run(context.config)
    begin(context)
    train(context, 1)
    supply(context, 2)
    return context


def stored(context: Context, round_: int) -> list[dict[str, Any]]:
    return [*read_rows(context.run.stage(round_, "advantages").folder)]


def raw(values: Sequence[float], reward: float) -> list[float]:
    """Advantages at γ 1 and λ 0.9, summed up from the end."""
    deltas = [after - now for now, after in zip(values, [*values[1:], reward], strict=True)]
    return [sum(0.9**n * delta for n, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def whitened(rows: list[list[list[float]]]) -> list[list[list[float]]]:
    every = [a for row in rows for response in row for a in response]
    mean, deviation = statistics.fmean(every), statistics.pstdev(every)
    return [[[(a - mean) / deviation for a in response] for response in row] for row in rows]


def live_values(context: Context, round_: int, examples: list[Example]) -> list[list[list[float]]]:
    """What the head that ``round_`` left says on that round's policy, one padded example at a time."""
    folder = context.run.stage(round_, "policy").folder
    head = carried_value_head(folder / "heads")
    assert head is not None and float(head.linear.weight.detach().abs().max()) > 0
    model = TokenLogps(load_policy(str(folder)), wants=frozenset({"hidden"}))
    found = []
    for example in examples:
        batch = collate([example])
        with torch.no_grad():
            hidden = model(batch.ids, batch.mask).hidden
        assert hidden is not None
        values = at_tokens(head(hidden), batch.mask).detach()
        found.append([row[inside].tolist() for row, inside in zip(values, batch.mask, strict=True)])
    return found


def test_the_first_round_has_no_values_and_whitens_the_faded_rewards(two_rounds: Context) -> None:
    examples, rows = [*round_examples(two_rounds, 1)], stored(two_rounds, 1)
    rewards = [c.reward or 0.0 for e in examples for c in e.responses]
    assert statistics.pstdev(rewards) == pytest.approx(1)
    expected = whitened([[raw([0.0] * len(c.ids), c.reward or 0.0) for c in e.responses] for e in examples])
    assert [row["id"] for row in rows] == [e.id for e in examples]
    for row, wanted, example in zip(rows, expected, examples, strict=True):
        for side, of_response in enumerate(wanted):
            assert row["advantages"][side] == pytest.approx(of_response, abs=1e-5)
            fading = [0.9**n * (example.responses[side].reward or 0.0) for n in range(len(of_response))]
            assert row["returns"][side] == pytest.approx(fading[::-1], abs=1e-5)
    assert two_rounds.run.stage(1, "advantages").require().metrics["value_head"] is None


def test_the_second_round_has_those_of_the_head_that_the_first_left_on_its_policy(two_rounds: Context) -> None:
    examples, rows = [*round_examples(two_rounds, 2)], stored(two_rounds, 2)
    values = live_values(two_rounds, 1, examples)
    pairs = [
        [(v, c.reward or 0.0) for v, c in zip(row, e.responses, strict=True)]
        for row, e in zip(values, examples, strict=True)
    ]
    expected = whitened([[raw(v, reward) for v, reward in row] for row in pairs])
    for row, wanted in zip(rows, expected, strict=True):
        for ours, theirs in zip(row["advantages"], wanted, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)
    metrics = two_rounds.run.stage(2, "advantages").require().metrics
    assert metrics["value_head"] == "round_001/policy"
    assert metrics["tokens"] == sum(e.response_tokens for e in examples)
    joined = next(examples_with_reference(two_rounds, 2)).responses[0]
    assert joined.advantages == tuple(rows[0]["advantages"][0]) and joined.returns == tuple(rows[0]["returns"][0])


def test_a_kill_between_shards_keeps_the_shards_and_leads_to_the_same_rows(
    two_rounds: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = two_rounds
    monkeypatch.setattr(stage, "_SHARD", 3)
    computed: list[int] = []
    real = stage.FrozenPolicy.token_values

    def one_shard(self: Any, examples: Sequence[Example], *rest: Any) -> Any:
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(len(examples))
        return real(self, examples, *rest)

    again = tmp_path / "again"
    again.mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage.FrozenPolicy, "token_values", one_shard)
        stage.estimate_advantages(context, 2, again)
    kept = [file.name for file in (again / "values").glob("*.parquet")]
    assert kept == ["shard_00000.parquet"]
    computed.clear()

    def counted(self: Any, examples: Sequence[Example], *rest: Any) -> Any:
        computed.append(len(examples))
        return real(self, examples, *rest)

    monkeypatch.setattr(stage.FrozenPolicy, "token_values", counted)
    outcome = stage.estimate_advantages(context, 2, again)
    assert sum(computed) == outcome.rows - 3
    assert sorted(file.name for file in again.iterdir()) == ["rows.parquet"]
    for ours, theirs in zip(read_rows(again), stored(context, 2), strict=True):
        assert ours["id"] == theirs["id"]
        for name in ("advantages", "returns"):
            for a, b in zip(ours[name], theirs[name], strict=True):
                assert a == pytest.approx(b, abs=1e-4)


def test_its_key_follows_what_it_reads_of_the_loss(job: Path, two_rounds: Context) -> None:
    def key(name: str, loss: str) -> str:
        config = open_context(job, two_rounds.run.root, "iterative", loss).config
        return stage_key(two_rounds.run, config, 2, name).digest

    assert key("advantages", LOSS) == key("advantages", LOSS.replace("eta: 1", "eta: 3"))
    assert key("advantages", LOSS) != key("advantages", LOSS.replace("0.9", "0.8"))
    assert key("policy", LOSS) != key("policy", LOSS.replace("eta: 1", "eta: 3"))


def test_rows_of_other_pairs_are_refused(two_rounds: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [*round_examples(two_rounds, 2)]
    monkeypatch.setattr("flows.stages.training.examples.round_examples", lambda *_: iter(examples[1:]))
    with pytest.raises(RunError, match=r"round 2: the advantages stage and the pairs .* --from 2:advantages"):
        list(examples_with_reference(two_rounds, 2))


def test_offline_it_takes_scored_data_and_refuses_other(job: Path, tmp_path: Path) -> None:
    scored = open_context(job, tmp_path / "scored", "offline", LOSS)
    check_run(scored.config)
    begin(scored)
    train(scored, 1)
    assert (scored.run.stage(1, "policy").folder / "heads").is_dir()
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(f'{{"prompt": "dog {n}", "chosen": "ran {n}", "rejected": "sat {n}"}}\n' for n in range(9)))
    with pytest.raises(UserError, match="loss apa_token needs rewards"):
        check_run(open_context(job, tmp_path / "bare", "offline", LOSS, f"pairs.path={bare}").config)
    with pytest.raises(UserError, match="holds single responses"):
        check_run(open_context(job, tmp_path / "one", "offline", LOSS, f"pairs.path={job / 'marked.jsonl'}").config)


def test_values_that_are_not_finite_are_told_and_not_kept(
    two_rounds: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage.FrozenPolicy,
        "token_values",
        lambda self, examples, *rest: [tuple((float("nan"),) * len(c.ids) for c in e.responses) for e in examples],
    )
    with pytest.raises(RunError, match=r"values of example .* are not finite; the row is in .*advantages\.parquet"):
        stage.estimate_advantages(two_rounds, 2, tmp_path)
    assert not [*(tmp_path / "values").glob("*.parquet")]
