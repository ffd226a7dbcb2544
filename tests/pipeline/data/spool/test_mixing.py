"""Mixtures: how many rows of each member, which ones, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import MixtureData, RunConfig
from pipeline.config.files import dump_config, load_config
from pipeline.data.reading import SourceRow, read_preferences, read_prompts
from pipeline.data.spool.kept_rows import RunRows
from pipeline.data.spool.mixing import MemberRows, select
from pipeline.errors import UserError
from pipeline.types import TextPreference


def pair(name: str, number: int, **further: Any) -> dict[str, Any]:
    return {"prompt": f"{name} {number}", "chosen": "x", "rejected": "y", **further}


def write(folder: Path, name: str, rows: list[Any]) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def mixture(folder: Path, sizes: dict[str, int], weights: list[float | None], seed: int = 0) -> MixtureData:
    files = [write(folder, name, [pair(name, n) for n in range(size)]) for name, size in sizes.items()]
    of = [{"path": file, "weight": weight} for file, weight in zip(files, weights, strict=True)]
    return MixtureData.model_validate({"of": of, "seed": seed})


def run_rows(data: MixtureData) -> RunRows:
    plain = {"name": "t", "mode": "offline", "policy": {"path": "m"}, "loss": {"preset": "dpo"}}
    return RunRows(RunConfig.model_validate({**plain, "pairs": data.model_dump(), "prompts": data.model_dump()}))


def used(data: MixtureData) -> list[int]:
    return [member.used for member in run_rows(data).members() if member.name.startswith("pairs")]


def prompts(data: MixtureData) -> list[str]:
    rows = run_rows(data).preferences("pairs")
    return [row.value.prompt.messages[0].content for row in rows if row.value is not None]


def config(folder: Path, pairs: object, **further: object) -> RunConfig:
    plain = {"name": "t", "mode": "offline", "policy": {"path": "m"}, "loss": {"preset": "dpo"}}
    return RunConfig.model_validate({**plain, "pairs": pairs, **further})


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], [100, 43]),
        ([7, 3], [100, 43]),
        ([1, 9], [20, 180]),
        ([1, None], [100, 100]),
        ([1000, 0.001], [100, 1]),
        ([None, None], [100, 180]),
    ],
)
def test_a_mixture_has_as_many_rows_as_its_weights_allow(
    weights: list[float | None], expected: list[int], tmp_path: Path
) -> None:
    data = mixture(tmp_path, {"a": 100, "b": 180}, weights)
    found = prompts(data)
    assert used(data) == expected == [sum(text.startswith(name) for text in found) for name in "ab"]
    assert len(set(found)) == len(found), "no row is used twice"
    assert found == sorted(found, key=lambda text: (text[0], int(text[2:]))), "in the order of the files"
    for rows in (run_rows(data).prompts("prompts"), run_rows(data).prompts("pairs")):
        assert [row.value.prompt.messages[0].content for row in rows if row.value is not None] == found


def test_the_seed_and_the_prompts_choose_the_rows(tmp_path: Path) -> None:
    sizes = {"a": 50, "b": 300}
    first = prompts(mixture(tmp_path, sizes, [1, 1]))
    assert prompts(mixture(tmp_path, sizes, [1, 1])) == first
    assert set(prompts(mixture(tmp_path, sizes, [1, 1], seed=1))) != set(first)
    assert prompts(mixture(tmp_path, sizes, [1, 1], seed=1))[:50] == first[:50], "all rows of the scarce one"
    more = prompts(mixture(tmp_path, sizes, [1, 2]))
    assert set(more) > set(first), "a larger weight adds rows"
    data = mixture(tmp_path, sizes, [1, 1])
    write(tmp_path, "b", [pair("b", n) for n in reversed(range(301))])
    assert len(set(prompts(data)) ^ set(first)) <= 2, "another order and a row more change one row"


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "a", [pair("a", n) for n in range(10)]),
        write(tmp_path, "b", [pair("b", n // 4, reference=n) for n in range(80)]),
    ]
    data = MixtureData.model_validate({"of": [{"path": file, "weight": 1} for file in files]})
    found = [text for text in prompts(data) if text.startswith("b")]
    assert len(found) == used(data)[1] in (8, 12) and {found.count(text) for text in found} == {4}
    write(tmp_path, "a", [pair("a", 0)])
    write(tmp_path, "b", [pair("b", 0)] * 5)
    assert used(data) == [1, 5], "at least one prompt"


def test_faulty_rows_count_for_no_weight_and_are_still_found(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "a", ["no json"] * 5 + [pair("a", n) for n in range(20)]),
        write(tmp_path, "b", [{"prompt": "only"}] * 3 + [pair("b", n) for n in range(200)]),
    ]
    data = MixtureData.model_validate({"of": [{"path": file, "weight": 1} for file in files]})
    rows: list[SourceRow[TextPreference]] = [*run_rows(data).preferences("pairs")]
    assert [(row.file, row.number) for row in rows if row.value is None] == [
        *((files[0], number) for number in range(1, 6)),
        *((files[1], number) for number in range(1, 4)),
    ]
    assert select(data, read_preferences(data)).counts("pairs") == [
        MemberRows("pairs.of.0", files[0], 20, 20),
        MemberRows("pairs.of.1", files[1], 20, 200),
    ]


def test_a_member_without_rows_and_one_of_another_form_are_refused(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"a": 5, "b": 0}, [1, 1])
    with pytest.raises(UserError, match=r"b\.jsonl: holds no rows; leave it out"):
        select(data, read_prompts(data))
    group = {"prompt": "g", "responses": ["x", "y"], "rewards": [1, 0]}
    write(tmp_path, "b", [group, group])
    faults = [row.fault for row in read_preferences(data) if row.value is None]
    assert len(faults) == 2 and str(faults[0]).endswith("a data set holds one form")


def test_a_list_is_a_mixture_also_on_the_command_line(tmp_path: Path) -> None:
    of = [{"path": "a", "weight": 0.7}, {"kind": "dataset", "path": "o/n", "columns": {"prompt": "q"}}]
    data = config(tmp_path, of).pairs
    assert isinstance(data, MixtureData) and data == config(tmp_path, {"kind": "mixture", "of": of}).pairs
    assert data == config(tmp_path, {"of": of}).pairs
    assert [one.kind for one in data.of] == ["file", "dataset"] and data.of[1].columns.prompt == "q"
    assert data.shares == pytest.approx((0.7 / 1.7, 1 / 1.7))
    file = tmp_path / "run.yaml"
    file.write_text("name: t\nmode: offline\npolicy: {path: m}\npairs: {path: c, columns: {prompt: p}}\n")
    found = load_config([file], ["pairs=[{path: a, weight: 0.7}, {path: b}]"])
    assert isinstance(found.pairs, MixtureData) and [one.weight for one in found.pairs.of] == [0.7, None]
    file.write_text(dump_config(found))
    assert load_config([file]) == found


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("pairs=[{path: a, weight: 0}]", "pairs.of.0.weight: input should be greater than 0"),
        ("pairs=[{path: a, wieght: 1}]", "pairs.of.0.wieght: no such setting; did you mean 'weight'"),
        ("pairs=[{path: a}, {path: a, weight: 2}]", "pairs.of.1.path: a is also in of.0"),
        ("pairs=[]", "pairs.of: names no file and no data set"),
        ("pairs.weight=2", "pairs.weight: no such setting"),
        ("held_out.path=c", "held_out.path: a mixture has no held-out prompts of their own"),
        ("held_out.split=test", "held_out.split: a mixture has no held-out prompts of their own"),
        ("held_out.by=source", "held_out.by: source needs columns.source"),
    ],
)
def test_mistakes_are_named(setting: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: t\nmode: offline\npolicy: {path: m}\npairs: {of: [{path: a}, {path: b}]}\n")
    with pytest.raises(UserError) as caught:
        load_config([file], [setting])
    assert said in str(caught.value) and str(caught.value).count("\n") == 1


def test_all_members_name_the_source_to_hold_out(tmp_path: Path) -> None:
    of = [{"path": name, "columns": {"source": "url"}} for name in "ab"]
    assert config(tmp_path, of, held_out={"by": "source"}).pairs is not None
    with pytest.raises(ValidationError, match=r"columns\.source"):
        config(tmp_path, [*of, {"path": "c"}], held_out={"by": "source"})
