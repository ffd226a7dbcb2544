"""The check of a run's data: planted faults are all found and counted, limits are kept, real data passes."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.check import check_config, check_run
from flows.preflight.data import check_data
from flows.preflight.fault_log import FaultLog
from flows.preflight.tokens import tokens_for_dropping
from pipeline.config import Limits, RunConfig, ScratchPolicy
from pipeline.config.files import dump_config, load_config
from pipeline.data.run_data import open_data
from pipeline.errors import UserError
from tests.support.places import DATA
from tests.support.tiny_model import save_tiny_model

LONG = "the cat sat on the mat " * 30
TEXT = {"chosen": "to the barn", "rejected": "on the mat"}
# Every fault that a pair can have, each in as many rows as its number says.
PAIRS: list[tuple[dict[str, Any] | str, Counter[str]]] = [
    *[({"prompt": f"a dog {n}", **TEXT}, Counter()) for n in range(10)],
    ("not json", Counter(malformed=1)),
    ({"prompt": "a dog", "chosen": "x"}, Counter(malformed=1)),
    ({"prompt": "<s>a cat", **TEXT}, Counter(doubled_bos=1)),
    *[({"prompt": f"eos {n}", "chosen": "x</s>", "rejected": "y"}, Counter(doubled_eos=1)) for n in range(2)],
    ({"prompt": "<|user|>a mat", **TEXT}, Counter(special_token=1)),
    *[({"prompt": f"cut {n}", "chosen": LONG, "rejected": "y"}, Counter(missing_eos=1)) for n in range(3)],
    *[({"prompt": f"none {n}", "chosen": " ", "rejected": "y"}, Counter(empty=1)) for n in range(4)],
    *[({"prompt": f"same {n}", "chosen": "y", "rejected": "y"}, Counter(identical=1)) for n in range(5)],
    (
        {"prompt": "same, cut", "chosen": LONG + "x", "rejected": LONG},
        Counter(missing_eos=1, identical_when_cut=1),
    ),
    *[({"prompt": f"tie {n}", **TEXT, "chosen_score": n, "rejected_score": n}, Counter(tie=1)) for n in range(6)],
    ({"prompt": "a dog 1", "chosen": "new", "rejected": "newer"}, Counter(duplicate_prompt=1)),
    ({"prompt": "a dog 2", **TEXT}, Counter(duplicate_prompt=1, duplicate_row=1)),
    (
        {"prompt": "a dog 3", "chosen": "n", "rejected": "m", "answer": "b"},
        Counter(duplicate_prompt=1, differing_answer=1),
    ),
    *[({"prompt": f"held {case} OUT", **TEXT}, Counter(leak=1)) for case in ("it  is", "It is")],
    ({"prompt": LONG, **TEXT}, Counter(long_for_policy=1)),
]
GROUPS: list[tuple[dict[str, Any] | str, Counter[str]]] = [
    *[({"prompt": f"a dog {n}", "responses": ["a", "b"], "rewards": [0, n]}, Counter(tie=n == 0)) for n in range(10)],
    ({"prompt": "p", "responses": ["a"], "rewards": [1]}, Counter(lone_response=1)),
    ({"prompt": "q", "responses": ["a", "b", "a"], "rewards": [1, 2, 3]}, Counter(identical=1)),
    ({"prompt": "r", "responses": ["a", "", "c"], "rewards": [1, 2, 3]}, Counter(empty=1)),
    (
        {"prompt": "s", "responses": ["a", LONG, LONG + "x"], "rewards": [1, 2, 3]},
        Counter(missing_eos=1, identical_when_cut=1),
    ),
    ({"prompt": "t", "responses": ["a<|end|>", "<s>b"], "rewards": [1, 2]}, Counter(doubled_eos=1, doubled_bos=1)),
    (
        {"prompt": "q", "responses": ["b", "a", "a"], "rewards": [1, 2, 3]},
        Counter(duplicate_prompt=1, duplicate_row=1, identical=1),
    ),
]
MARKED: list[tuple[dict[str, Any] | str, Counter[str]]] = [
    *[({"prompt": f"a dog {n}", "completion": "x", "label": n % 2 == 0}, Counter()) for n in range(10)],
    ({"prompt": "p", "completion": "x", "label": "maybe"}, Counter(malformed=1)),
    ({"prompt": "q", "completion": "\n", "label": True}, Counter(empty=1)),
    ({"prompt": "r", "completion": LONG, "label": True}, Counter(missing_eos=1)),
    ({"prompt": "a dog 1", "completion": "x", "label": True}, Counter(duplicate_prompt=1, duplicate_row=1)),
    ({"prompt": "s</s>", "completion": "x", "label": True}, Counter(doubled_eos=1)),
    ({"prompt": "t", **TEXT}, Counter(malformed=1)),
]
FORMS = {"pairs": PAIRS, "groups": GROUPS, "marked": MARKED}
LOSSES = {"pairs": "dpo", "groups": "rpo_sqloo", "marked": "kto"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def offline(folder: Path, model: Path, pairs: Path, *settings: str) -> RunConfig:
    (folder / "run.yaml").write_text(
        f"name: t\nmode: offline\npolicy: {{path: {model}}}\npairs: {{path: {pairs}}}\n"
        "held_out: {prompts: 2}\nchat: {max_prompt_tokens: 200, max_response_tokens: 64}\n"
    )
    return load_config([folder / "run.yaml"], settings)


def lenient() -> str:
    return "limits={" + ", ".join(f"{name}: 1" for name in Limits.model_fields) + "}"


@pytest.mark.parametrize("form", FORMS)
def test_every_planted_fault_is_found_in_its_row(form: str, tmp_path: Path, model: Path) -> None:
    planted = FORMS[form]
    file = write(tmp_path / "rows.jsonl", [row for row, _ in planted])
    held = write(tmp_path / "held.jsonl", [{"prompt": "Held it is out", "chosen": "a", "rejected": "b"}])
    faults = tmp_path / "found" / "faults.jsonl"
    settings = [
        f"loss.preset={LOSSES[form]}",
        lenient(),
        f"held_out.path={held}" if form == "pairs" else "held_out.prompts=2",
    ]
    _, log = check_run(offline(tmp_path, model, file, *settings), faults)
    found = [json.loads(line) for line in faults.read_text().splitlines()]
    assert {line["file"] for line in found} == {str(file)} and {line["source"] for line in found} == {"pairs"}
    expected = [(number, cause) for number, (_, causes) in enumerate(planted, 1) for cause in causes.elements()]
    assert sorted((line["row"], line["cause"]) for line in found) == sorted(expected)
    assert log.tallies["pairs"].faults == sum((causes for _, causes in planted), Counter())
    assert log.tallies["pairs"].rows == len(planted)


def test_above_a_limit_the_run_is_refused_and_below_it_is_not(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"a dog {n}", "chosen": "" if n < 3 else "x", "rejected": "y"} for n in range(20)]
    file, faults = write(tmp_path / "rows.jsonl", rows), tmp_path / "f.jsonl"
    with pytest.raises(UserError) as caught:
        check_run(offline(tmp_path, model, file), faults)
    assert str(caught.value).splitlines() == [
        "the data has faults above its limits",
        "pairs: empty: 3 of 20 rows (15 %); limits.empty allows 0.1",
        f"  {file}, rows 1, 2, 3: no text: chosen",
        f"all of them: {faults}",
    ]
    assert len(faults.read_text().splitlines()) == 3
    check_run(offline(tmp_path, model, file, "limits.empty=0.15"), faults)
    write(file, rows[3:])
    check_run(offline(tmp_path, model, file), faults)
    assert not faults.exists()


def test_rows_with_the_same_fault_are_one_line_with_the_mapping(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"a dog {n}", "better": "x", "rejected": "y"} for n in range(2000)]
    file = write(tmp_path / "rows.jsonl", [{"prompt": "only"}, *rows])
    with pytest.raises(UserError) as caught:
        check_run(offline(tmp_path, model, file))
    assert str(caught.value).splitlines() == [
        "the data has faults above its limits",
        "pairs: malformed: 2001 of 2001 rows (100 %); limits.malformed allows 0",
        f"  {file}, row 1: no column 'chosen'; it has 'prompt'",
        f"  {file}, rows 2, 3, 4 ... (2,000 rows): no column 'chosen'; it has 'prompt', 'better', 'rejected'",
        "  say which column it is: pairs.columns.chosen=NAME",
    ]


def test_the_rows_that_are_not_trained_on_are_counted_by_reason(tmp_path: Path, model: Path) -> None:
    rows: list[Any] = [{"prompt": f"a dog {n}", **TEXT} for n in range(20)]
    rows += [
        "not json",
        {"prompt": "e", "chosen": "", "rejected": "y"},
        {"prompt": "s", "chosen": "y</s>", "rejected": "x"},
    ]
    rows += [{"prompt": LONG, **TEXT}, {"prompt": "cut", "chosen": LONG, "rejected": "y"}]
    file = write(tmp_path / "rows.jsonl", rows)
    settings = [
        lenient(),
        "limits.doubled_eos=drop",
        "held_out={prompts: 100, share: 0.1, seed: 1}",
        "chat.max_prompt_tokens=100",
    ]
    config = offline(tmp_path, model, file, *settings)
    contents, log = check_run(config)
    split = open_data(config, tokens_for_dropping(config)).split
    odd = sum(prompt.messages[-1].content in (LONG, "e") for prompt in split.held_out)
    assert odd == 0 and len(split.held_out) == 3, "23 prompts are left to split"
    reasons = "3 held out, 1 malformed, 1 empty, 1 doubled_eos, 1 long_for_policy"
    assert log.account == [f"pairs: trains on 18 of 25 rows; not on {reasons}"]
    assert contents.pairs == 18 + 2
    assert "  pairs: missing_eos: 1 of 25 rows (4 %), limit 1: cut, and kept without an end token" in log.lines()
    assert "  pairs: doubled_eos: 1 of 25 rows (4 %), dropped (limits)" in log.lines()
    _, log = check_run(offline(tmp_path, model, file, lenient(), "held_out.prompts=20"))
    assert log.account[1:] == ["  held_out.share=0.1 holds out fewer prompts"]


def test_guessed_prompts_are_counted_and_split_with_those_that_they_begin_with(tmp_path: Path, model: Path) -> None:
    said = [(" Of course: x", " Of course: y"), (" Sure x", " Sure y"), (" x", " y")]
    rows = [{"chosen": f"Tell {n}." + one, "rejected": f"Tell {n}." + other} for n in range(10) for one, other in said]
    config = offline(tmp_path, model, write(tmp_path / "rows.jsonl", rows), "held_out.prompts=7")
    contents, log = check_run(config)
    assert log.account[1].startswith("30 distinct prompts are guessed: the common start of chosen and rejected; 20 of")
    held = [prompt.messages[0].content for prompt in open_data(config).split.held_out]
    assert len(held) == contents.held_out == 6
    assert all(
        sum(text.startswith(whole) for text in held) == 3 for whole in {text[: text.index(".") + 1] for text in held}
    )


def test_a_source_that_is_held_out_is_named(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"a dog {n}", **TEXT, "page": n // 5} for n in range(30)]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"held_out\.by: source needs columns\.source"):
        offline(tmp_path, model, file, "held_out={prompts: 12, by: source}")
    config = offline(tmp_path, model, file, "held_out={prompts: 12, by: source}", "pairs.columns.source=page")
    _, log = check_run(config)
    split = open_data(config).split
    assert log.account == ["pairs: trains on 20 of 30 rows; not on 10 held out"]
    assert len({int(prompt.messages[0].content.split()[-1]) // 5 for prompt in split.held_out}) == 2
    for given in (f"path: {file}", "split: test"):
        with pytest.raises(UserError, match=r"by: source splits the prompts of the run"):
            offline(tmp_path, model, file, f"held_out={{by: source, {given}}}", "pairs.columns.source=page")


@pytest.mark.parametrize("form", FORMS)
def test_dropped_causes_leave_their_rows_out_and_count_them(form: str, tmp_path: Path, model: Path) -> None:
    planted = FORMS[form]
    file = write(tmp_path / "rows.jsonl", [row for row, _ in planted])
    held = write(tmp_path / "held.jsonl", [{"prompt": "Held it is out", "chosen": "a", "rejected": "b"}])
    settings = [f"loss.preset={LOSSES[form]}", f"held_out.path={held}" if form == "pairs" else "held_out.prompts=2"]
    dropped = "limits={" + ", ".join(f"{name}: drop" for name in Limits.model_fields) + "}"
    contents, log = check_run(offline(tmp_path, model, file, *settings, dropped), tmp_path / "f.jsonl")
    assert all(line.endswith("dropped (limits)") for line in log.lines()) and log.lines()
    # A row that repeats a dropped one is sound.
    sound = [row for row, causes in planted if not +causes]
    assert contents.preferences == len(sound) - (0 if form == "pairs" else 2)
    config = offline(tmp_path, model, file, *settings, dropped)
    found = open_data(config, tokens_for_dropping(config))
    lost = found.dropping.counts["pairs"]
    assert lost.total() == len(planted) - len(sound) and set(lost) <= {cause for _, c in planted for cause in c}
    prompts = {prompt.messages[-1].content for prompt in (*found.prompts(), *found.split.held_out)}
    assert prompts == {row["prompt"] for row in sound if isinstance(row, dict)} | (
        {"Held it is out"} if form == "pairs" else set()
    )


def test_a_repetition_of_a_dropped_row_is_none_and_the_first_of_equals_stays(tmp_path: Path, model: Path) -> None:
    said = [("p", "x</s>", "y"), ("p", "x", "y"), ("p", "y", "x"), ("p", "z", "y"), ("q", "x", "y"), ("r", "x", "y")]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in said]
    file = write(tmp_path / "rows.jsonl", rows)
    settings = ["held_out.prompts=1", "limits={doubled_eos: drop, duplicate_row: drop}"]
    contents, log = check_run(offline(tmp_path, model, file, *settings))
    assert contents.pairs + contents.held_out_pairs == 4
    assert log.tallies["pairs"].faults == {"doubled_eos": 1, "duplicate_prompt": 1, "duplicate_row": 1}
    settings[1] = "limits={doubled_eos: drop, duplicate_prompt: drop}"
    contents, _ = check_run(offline(tmp_path, model, file, *settings))
    assert contents.pairs + contents.held_out_pairs == 3


def test_a_limit_is_a_share_or_the_word_drop(tmp_path: Path, model: Path) -> None:
    for value in ("1.5", "-0.1", "no", "dropped"):
        with pytest.raises(UserError, match=r"limits\.leak: a share from 0 to 1, or drop|must be a number"):
            offline(tmp_path, model, tmp_path, f"limits.leak={value}")
    plain, dropping = (offline(tmp_path, model, tmp_path, *s) for s in ((), ["limits.empty=drop"]))
    assert plain.identity()["limits"] == {} and dropping.identity()["limits"] == {"empty": "drop"}
    assert load_config([write(tmp_path / "again.yaml", [dump_config(dropping)])]) == dropping
    unknown = {"policy": ScratchPolicy(), "limits": Limits(special_token="drop")}
    scratch = plain.model_copy(update=unknown)
    with pytest.raises(UserError, match=r"limits\.special_token: drop needs the policy's tokenizer"):
        tokens_for_dropping(scratch)


def test_rewards_that_may_be_ranks_are_refused_until_their_meaning_is_said(tmp_path: Path, model: Path) -> None:
    orders = ([1, 2, 3], [3, 1, 2], [2, 3, 1])
    rows = [{"prompt": f"a {n}", "responses": ["x", "y", "z"], "rewards": orders[n % 3]} for n in range(10)]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"1 to K in some order\. Say pairs\.rewards_are=ranks if 1 is the best, pairs"):
        check_run(offline(tmp_path, model, file))
    for meaning in ("ranks", "scores"):
        contents, _ = check_run(offline(tmp_path, model, file, f"pairs.rewards_are={meaning}"))
        assert contents.groups == 8
    # A run folder's config writes every setting.
    unsaid, scores = offline(tmp_path, model, file), offline(tmp_path, model, file, "pairs.rewards_are=scores")
    (tmp_path / "written.yaml").write_text(dump_config(unsaid))
    with pytest.raises(UserError, match=r"1 to K in some order"):
        check_run(load_config([tmp_path / "written.yaml"]))
    assert unsaid.identity() == scores.identity(), "stages made without the word are not made again"
    write(file, [*rows, {"prompt": "b", "responses": ["x", "y"], "rewards": [1, 1]}])
    check_run(offline(tmp_path, model, file))


def test_scores_that_contradict_chosen_and_rejected_are_refused(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"a {n}", **TEXT, "chosen_score": 1, "rejected_score": 2 + n} for n in range(10)]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"contradiction: 10 of 10 rows .*; limits.contradiction allows 0.1"):
        check_run(offline(tmp_path, model, file))
    check_run(offline(tmp_path, model, file, "pairs.rewards_are=ranks"))


def test_many_causes_fit_on_a_few_lines(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [row for row, _ in PAIRS])
    with pytest.raises(UserError) as caught:
        check_run(offline(tmp_path, model, file))
    assert "malformed: 2 of" in str(caught.value) and len(str(caught.value).splitlines()) <= 10


def test_check_prints_counts_and_says_where_the_rows_are(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"a dog {n // 2}", "chosen": f"x{n}", "rejected": "y"} for n in range(20)]
    offline(tmp_path, model, write(tmp_path / "rows.jsonl", rows))
    check_config([tmp_path / "run.yaml"], [])
    said = capsys.readouterr().out
    assert "pairs: duplicate_prompt: 10 of 20 rows (50 %), limit 1" in said and "runs/t.faults.jsonl" in said
    assert len((tmp_path / "runs" / "t.faults.jsonl").read_text().splitlines()) == 10


def test_majority_votes_leave_ties_out_and_soft_ones_need_a_loss_that_reads_them(tmp_path: Path, model: Path) -> None:
    votes = [[1, 1, 2], [2, 2, 2], [1, 2, 0], [0, 0, 0]]
    rows = [{"prompt": f"a dog {n}", "chosen": "x", "rejected": "y", "v": votes[n % 4]} for n in range(20)]
    file = write(tmp_path / "rows.jsonl", rows)
    columns, majority = "pairs.columns.votes=v", "pairs.votes.label=majority"
    contents, log = check_run(offline(tmp_path, model, file, columns))
    assert log.tallies["pairs"].faults == Counter(tie=10)
    assert contents.pairs + contents.held_out_pairs == 20 and contents.soft >= 13
    contents, _ = check_run(offline(tmp_path, model, file, columns, majority))
    assert contents.pairs + contents.held_out_pairs == 10 and contents.soft == 0
    check_run(offline(tmp_path, model, file, columns, majority, "loss.preset=kto"))
    with pytest.raises(
        UserError, match=r"pairs\.votes\.label: soft: .* loss kto does not read it; majority makes hard"
    ):
        check_run(offline(tmp_path, model, file, columns, "loss.preset=kto"))


REAL_SETS = {
    "pandalm": (
        "pairs/pandalm_test_human3.jsonl",
        "pairs={columns: {prompt: [instruction, input], chosen: response1, rejected: response2, votes: votes}}",
    ),
    "mtbench": ("ranked/mtbench_vicuna_k4_scores.jsonl", "pairs={columns: {rewards: gpt4_scores}}"),
    "gsm8k": (
        "verifiable/gsm8k_4model_solutions.jsonl.gz",
        "pairs={columns: {prompt: question, responses: solutions, rewards: correct}}",
    ),
}
# What the sets really hold. PandaLM has 170 prompts; where two pairs of models said the same, rows repeat.
KNOWN = {
    "pandalm": {"empty": 54, "duplicate_row": 136, "duplicate_prompt": 829, "tie": 85},
    "mtbench": {"identical": 1, "tie": 8},
    "gsm8k": {"identical": 8, "tie": 588},
}


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data (../shared/data) is not beside this checkout")
@pytest.mark.parametrize("name", REAL_SETS)
def test_real_sets_pass_and_their_faults_are_real(name: str, tmp_path: Path, model: Path) -> None:
    path, columns = REAL_SETS[name]
    wide = "chat={max_prompt_tokens: 100000, max_response_tokens: 100000}"
    settings = [columns, f"pairs.path={DATA / path}", wide, "limits.long_for_policy=1"]
    _, log = check_run(offline(tmp_path, model, DATA / path, *settings))
    found = {cause: count for cause, count in log.tallies["pairs"].faults.items() if cause != "long_for_policy"}
    assert found == KNOWN[name]


def test_each_row_is_parsed_once_and_told_of_from_the_first(
    tmp_path: Path, model: Path, parsed: Callable[[], dict[str, int]]
) -> None:
    rows = [{"prompt": f"a dog {n}", "chosen": f"to the barn {n}", "rejected": "on the mat"} for n in range(120)]
    config = offline(tmp_path, model, write(tmp_path / "rows.jsonl", rows))
    told: list[tuple[int, int, str]] = []
    contents, _ = check_data(config, None, lambda prompt: None, report=lambda *now: told.append(now))
    assert (contents.prompts, contents.pairs, contents.held_out_pairs) == (118, 118, 2)
    assert parsed() == {"preference_of": 120}
    assert told == [
        *((count, 0, "read") for count in (1, 51, 101)),
        *((count, 120, "checked") for count in (1, 51, 101)),
    ]


def test_a_dropped_row_counts_towards_no_other_limit(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"a dog {n % 40}", **TEXT} for n in range(60)]
    file, faults = write(tmp_path / "rows.jsonl", rows), tmp_path / "faults.jsonl"
    with pytest.raises(UserError, match=r"duplicate_row: 20 of 60 rows"):
        check_run(offline(tmp_path, model, file), faults)
    _, log = check_run(offline(tmp_path, model, file, "limits.duplicate_prompt=drop"), faults)
    assert log.tallies["pairs"].faults == Counter(duplicate_prompt=20)
    assert {json.loads(line)["cause"] for line in faults.read_text().splitlines()} == {"duplicate_prompt"}
    assert log.account == ["pairs: trains on 38 of 60 rows; not on 20 duplicate_prompt, 2 held out"]


def test_two_checks_at_the_same_time_do_not_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "faults.jsonl"
    with FaultLog(Limits(), file) as first:
        first.row("pairs")
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: -1)
            with FaultLog(Limits(), file) as second:
                second.row("pairs")
                second.fault("pairs", "a", 1, "tie", "of the second")
        first.fault("pairs", "a", 1, "tie", "of the first")
    assert [json.loads(line)["said"] for line in file.read_text().splitlines()] == ["of the first"]
    assert [*tmp_path.iterdir()] == [file]


def test_the_unfinished_file_of_a_killed_check_goes_with_the_next(tmp_path: Path) -> None:
    file = tmp_path / "t.faults.jsonl"
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, others = (tmp_path / f"t.faults.jsonl.{number}.tmp" for number in (gone.pid, os.getppid()))
    left.touch()
    others.touch()
    with FaultLog(Limits(), file):
        pass
    assert sorted(tmp_path.iterdir()) == [others]
