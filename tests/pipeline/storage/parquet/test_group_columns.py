"""Groups as columns give the files and the groups that rows gave."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.parquet.group_columns import GROUPS, group_table, groups_of
from pipeline.storage.rows import read_group_file, write_groups, write_preferences, write_table
from pipeline.types import Group, Message, Prompt, Response, TurnRow


def response(n: int) -> Response:
    turns = (TurnRow((1, 2), (3, n), (True, False)), TurnRow((), (), ())) if n % 3 == 0 else ()
    ids, logprobs = tuple(range(n % 4)), tuple(-0.1 * k for k in range(n % 4))
    return Response(f"wörd {n}", ids, logprobs, "length" if n % 2 else "stop", n % 5, n % 2, n % 7 == 1, turns)


def group(n: int) -> Group:
    messages = (Message("system", "be"), Message("user", f"the cat {n}", '{"name":"x"}' if n % 3 else ""))
    given = {"answer": None if n % 5 else "a", "reference": "r" if n % 7 else None, "rubric": "" if n % 2 else "q"}
    prompt = Prompt(messages[n % 2 :], source="s" if n % 2 else "", **given)
    responses = tuple(map(response, range(n, n + n % 4)))
    scores = () if n % 3 == 0 else tuple(None if k == 1 else k / 2 for k in range(len(responses)))
    wins = () if n % 2 else tuple(tuple(0.5 if k == j else None for k in range(3)) for j in range(len(responses)))
    spread = () if n % 3 else tuple(None for _ in responses)
    criteria = () if n % 4 else tuple((1.0, None) for _ in responses)
    return Group(prompt, tuple(range(n % 5)), responses, scores, wins, spread, criteria)


def row_by_row(file: Path, groups: list[Group]) -> bytes:
    """The bytes that the row writer gives, which preferences still use: pairs of groups."""
    write_preferences(file, groups)
    return file.read_bytes()


@pytest.mark.parametrize("count", [0, 1, 300, 1024, 2500])
def test_the_bytes_are_those_of_rows(tmp_path: Path, count: int) -> None:
    groups = [*map(group, range(count))]
    assert write_groups(tmp_path / "columns.parquet", iter(groups)) == count
    expected = row_by_row(tmp_path / "rows.parquet", groups) if groups else _empty(tmp_path / "rows.parquet")
    assert (tmp_path / "columns.parquet").read_bytes() == expected


def _empty(file: Path) -> bytes:
    write_table(file, GROUPS, ())
    return file.read_bytes()


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    groups = [*map(group, range(1100))]
    file = tmp_path / "shard.parquet"
    write_groups(file, groups)
    read = [*read_group_file(file)]
    # float32 on disk
    assert [one.prompt for one in read] == [one.prompt for one in groups]
    for own, back in zip(groups, read, strict=True):
        assert (back.prompt_ids, back.scores, back.wins) == (own.prompt_ids, own.scores, own.wins)
        assert (back.disagreement, back.criteria) == (own.disagreement, own.criteria)
        for one, other in zip(own.responses, back.responses, strict=True):
            assert other.logprobs == tuple(pa.array(one.logprobs, pa.float32()).to_pylist())
            fields = ("text", "token_ids", "finish_reason", "thinking_tokens", "hidden_tokens", "in_thought", "rows")
            assert [getattr(other, name) for name in fields] == [getattr(one, name) for name in fields]


def test_a_part_of_a_table_gives_its_own_groups() -> None:
    groups = [*map(group, range(1, 20))]
    (batch,) = group_table(groups).to_batches()
    found = groups_of(batch.slice(5, 7))
    assert found is not None
    assert [(one.prompt, one.prompt_ids, [r.token_ids for r in one.responses]) for one in found] == [
        (one.prompt, one.prompt_ids, [r.token_ids for r in one.responses]) for one in groups[5:12]
    ]


def test_files_of_an_earlier_version_lack_columns(tmp_path: Path) -> None:
    file = tmp_path / "shard.parquet"
    groups = [*map(group, range(1, 40, 2))]
    write_groups(file, groups)
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["criteria"]), file)
    read = [*read_group_file(file)]
    assert [one.scores for one in read] == [one.scores for one in groups]
    assert all(one.criteria == () for one in read)
