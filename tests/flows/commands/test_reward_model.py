"""`prefloop reward-model`: the folder that it leaves, what it says of it, and mistakes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from flows.commands import reward_model
from flows.commands.reward_model import make_reward_model, read_data
from flows.run_folder.lease import hold
from pipeline.config import ClassifierScorer, Limits, RewardModelConfig
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json
from pipeline.storage.layout import LAYOUT_FILE, RUN_LAYOUT, Written, own_version, require_known
from pipeline.storage.manifest import MANIFEST, plain, read_manifest
from pipeline.types import Group, Message, Prompt, Response
from reward_models.local.classifier import ClassifierReward
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import GROUPS, MARKED, PAIRS

# The better answer is the shorter one here, so length is no help.
ROWS = [
    {**{k: row[k] for k in ("prompt", "chosen", "rejected")}, "rejected": row["rejected"] + " and more" * 3}
    for row in PAIRS
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_job")
    save_tiny_model(folder / "model")
    ties = [{**row, "soft_label": 0.5} if n % 3 == 0 else row for n, row in enumerate(ROWS)]
    for name, rows in (("pairs", ROWS), ("ties", ties), ("groups", GROUPS), ("marked", MARKED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "tiny",
        "model": {"path": str(folder / "model")},
        "pairs": {"path": str(folder / "pairs.jsonl")},
        "held_out": {"prompts": 5},
        "training": {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, "checkpoint_every": 2},
    }
    (folder / "reward.yaml").write_text(json.dumps(config))
    return folder


def make(job: Path, out: Path, *settings: str) -> dict[str, Any]:
    make_reward_model([job / "reward.yaml"], [*settings], out)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def made(job: Path) -> Path:
    make(job, job / "made")
    return job / "made"


def test_the_folder_is_a_reward_model_for_the_scorer_and_for_transformers(made: Path) -> None:
    row = ROWS[0]
    texts = [row["chosen"], row["rejected"]]
    responses = tuple(Response(text, (), (), "stop") for text in texts)
    scorer = ClassifierReward(ClassifierScorer(path=str(made)))
    ((better, worse),) = scorer.score([Group(Prompt((Message("user", row["prompt"]),)), (), responses)])
    tokenizer, model = (kind.from_pretrained(made) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    turns = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}] for text in texts]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    batch = tokenizer(rendered, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (2, 1)
    assert logits[:, 0].tolist() == pytest.approx([better, worse], abs=1e-5)
    assert better is not None and worse is not None and better > worse + 1


@pytest.mark.parametrize("settings", [(), ("training.epochs=2",)])
def test_a_second_writer_is_refused_and_takes_nothing_away(
    job: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    (partial / "checkpoints").mkdir(parents=True)
    (partial / "steps.jsonl").write_text("of the first")
    (tmp_path / ".out.lease").mkdir()
    with hold(tmp_path / ".out.lease"), pytest.raises(UserError, match="another prefloop process is writing"):
        make(job, out, *settings)
    assert (partial / "steps.jsonl").read_text() == "of the first" and (partial / "checkpoints").is_dir()


def test_one_that_another_process_completes_while_data_is_read_is_taken(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_data, out = reward_model.read_data, tmp_path / "out"

    def meanwhile(config: RewardModelConfig) -> reward_model._Data:
        monkeypatch.undo()
        make(job, out)
        return read_data(config)

    monkeypatch.setattr(reward_model, "read_data", meanwhile)
    assert make(job, out)["pairs"] == 15 and not (tmp_path / "out.partial").exists()


def test_pairs_that_are_written_while_they_are_read_make_no_model(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_data, file = reward_model.read_data, tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def meanwhile(config: RewardModelConfig) -> reward_model._Data:
        with file.open("a") as opened:
            opened.write(json.dumps({**ROWS[0], "prompt": "another"}) + "\n")
        return read_data(config)

    monkeypatch.setattr(reward_model, "read_data", meanwhile)
    with pytest.raises(RunError, match=r"pairs: .*pairs\.jsonl: the data is being written"):
        make(job, tmp_path / "out", f"pairs.path={file}")
    assert not [*tmp_path.glob("out*")]


def test_it_says_what_the_model_is_worth_on_held_out_pairs(made: Path) -> None:
    metrics, manifest = (json.loads((made / f"{name}.json").read_text()) for name in ("metrics", "manifest"))
    found = metrics["held_out"]
    assert (found["pairs"], found["accuracy"], found["longer_wins"], found["above_longer_wins"]) == (5, 1.0, 0.0, 1.0)
    assert metrics["pairs"] == manifest["rows"] == 15 and metrics["padded_because"] is None
    assert manifest["metrics"] == metrics and manifest["config"]["ties"] == "drop"
    assert manifest["files"].keys() >= {"model.safetensors", "reliability.svg", "steps.jsonl", "config.yaml"}
    history = [json.loads(line) for line in (made / "steps.jsonl").read_text().splitlines()]
    assert len(history) == 12 and history[-1]["loss"] < 0.1 < history[0]["loss"]
    assert not list(made.parent.glob("made.partial*")) and not (made / "checkpoints").exists()


def test_the_same_command_again_changes_nothing_and_another_is_refused(job: Path, made: Path) -> None:
    before = (made / "manifest.json").read_text()
    make(job, made)
    with pytest.raises(UserError, match=r"made with other settings.*\n.*training.epochs: 3.0 -> 4.0"):
        make(job, made, "training.epochs=4")
    assert (made / "manifest.json").read_text() == before


def test_a_killed_run_goes_on_from_its_checkpoint(job: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.commands.reward_model

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(flows.commands.reward_model, "judge", killed)
        make(job, job / "again")
    (place,) = (job / "again.partial" / "checkpoints").iterdir()
    assert place.name == "step_000012"
    make(job, job / "again")
    files = [json.loads((folder / "manifest.json").read_text())["files"] for folder in (made, job / "again")]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


def test_ties_are_modelled_and_their_threshold_is_that_of_the_data(job: Path) -> None:
    metrics = make(job, job / "tied", f"pairs.path={job / 'ties.jsonl'}", "ties=rao_kupper")
    found = metrics["held_out"]
    assert metrics["pairs"] == 15 and metrics["dropped"]["tie"] == 0
    share = (7 - found["ties"]) / 15
    assert metrics["eta"] == pytest.approx(torch.log(torch.tensor((1 + share) / (1 - share))).item())
    assert found["ties"] > 0 and 0 < found["tie_probability"] < 1
    dropped = make(job, job / "dropped", f"pairs.path={job / 'ties.jsonl'}", "training.max_steps=1")
    assert dropped["pairs"] == 15 - dropped["dropped"]["tie"] and dropped["dropped"]["tie"] == 7 - found["ties"]


def test_groups_with_scores_make_margins(job: Path) -> None:
    settings = (
        f"pairs.path={job / 'groups.jsonl'}",
        "margin=rewards",
        "training.max_steps=1",
        "training.batch_size=45",
    )
    first = make(job, job / "grouped", *settings)
    assert first["pairs"] + first["dropped"]["tie"] == 45
    plain = make(job, job / "plain", *(s for s in settings if not s.startswith("margin")))
    # A margin asks for more than the random head gives.
    assert first["first_loss"] > plain["first_loss"] + 0.1


MISTAKES = {
    "margin with ties modelled": (
        ["ties=rao_kupper", "margin=0.5"],
        r"margin: constant: rao_kupper has its own margin",
    ),
    "margin of log-probabilities": (
        ["margin=gap"],
        r"margin: gap reads log-probabilities; use none, a number or rewards",
    ),
    "eta without ties": (["eta=0.3"], r"eta: only read with ties: rao_kupper"),
    "no ties to model": (["ties=rao_kupper"], r"0 of 15 pairs are ties; set eta"),
    "unknown setting": (["held_out.promts=3"], r"no such setting; did you mean 'prompts'"),
    "several processes": (["accelerate=ddp.yaml"], r"accelerate: a reward model trains in one process; leave it out"),
    "single responses": (["pairs.path=marked.jsonl"], r"single responses marked good or bad"),
    "no such model": (["model.path=nowhere"], r"model.path: .*nowhere"),
    "all too long": (["max_tokens=8"], r"no pair is left to train on; dropped by cause:\n  long: 15"),
    "no scores for margins": (["margin=rewards"], r"needs a reward for each response"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_leave_no_folder(mistake: str, job: Path) -> None:
    settings, message = MISTAKES[mistake]
    placed = [s.replace("=marked", f"={job}/marked").replace("=nowhere", f"={job}/nowhere") for s in settings]
    with pytest.raises(UserError, match=message):
        make(job, job / "mistaken", *placed)
    assert not list(job.glob("mistaken*"))


def test_a_token_without_an_embedding_is_named_before_training(job: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "model"))
    rows = len(tokenizer)
    tokenizer.add_tokens([ROWS[0]["rejected"].split()[-1]])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match=rf"model: its tokenizer gives .* the id {rows}, .*embeddings for {rows} tokens"
    ):
        make(job, tmp_path / "out", f"model.path={tmp_path / 'model'}")
    assert not list(tmp_path.glob("out*"))


def test_a_step_that_diverges_keeps_its_pairs(job: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)loss .*the pairs are in .*offending.json"):
        make(job, job / "wild", "training.learning_rate=1e30", "training.schedule=constant", "training.warmup=0")
    pairs = json.loads((job / "wild.partial" / "offending.json").read_text())
    assert pairs and {pair["chosen"] for pair in pairs} <= {row["chosen"] for row in ROWS}


def test_rows_are_read_and_refused_as_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, rows in (("train", 20), ("test", 3)):
        lines = [json.dumps({"prompt": f"{split} {n}", "chosen": "a", "rejected": "b"}) for n in range(rows)]
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text("\n".join([*lines, "not json", ""]))
    plain = {"name": "r", "model": {"path": "m"}, "pairs": {"path": str(tmp_path), "split": "train"}}
    with pytest.raises(UserError, match=r"pairs: malformed: 1 of 21 rows .* limits\.malformed allows 0"):
        read_data(RewardModelConfig.model_validate(plain))
    more = {"held_out": {"split": "test"}, "limits": {"malformed": 0.3}}
    data = read_data(RewardModelConfig.model_validate({**plain, **more}))
    assert [pair.prompt.messages[0].content for pair in data.held_out] == ["test 0", "test 1", "test 2"]
    assert len(data.train) == 20 and "held_out: malformed: 1 of 4 rows" in capsys.readouterr().err


def test_pairs_may_be_a_data_set_and_copies_of_held_out_prompts_are_left_out(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"question": f"Say {n}", "better": "a", "worse": "b"} for n in range(20)]
    copies = [{**row, "question": f"say  {n}"} for n, row in enumerate(rows)]
    Dataset.from_list([*rows, *copies]).save_to_disk(tmp_path / "set")
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    pairs = {"kind": "dataset", "path": str(tmp_path / "set"), "columns": columns}
    plain = {"name": "r", "model": {"path": "m"}, "pairs": pairs}
    data = read_data(RewardModelConfig.model_validate({**plain, "held_out": {"prompts": 100, "share": 0.1}}))
    spelled = [
        {pair.prompt.messages[0].content.casefold().split()[1] for pair in part} for part in (data.train, data.held_out)
    ]
    assert len(data.held_out) == 4 and spelled[0].isdisjoint(spelled[1]) and len(spelled[0] | spelled[1]) == 20
    (tmp_path / "held.jsonl").write_text(json.dumps(copies[3]))
    config = RewardModelConfig.model_validate({**plain, "held_out": {"path": str(tmp_path / "held.jsonl")}})
    with pytest.raises(UserError, match=r"held.jsonl: 2 training pairs have its prompts"):
        read_data(config)
    data = read_data(config.model_copy(update={"limits": Limits(leak="drop")}))
    assert (len(data.train), len(data.held_out)) == (38, 1)


def test_rows_that_limits_drop_are_in_no_pair(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p {n}", "chosen": "a", "rejected": "b", "chosen_score": n, "rejected_score": 3} for n in range(9)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[-1], rows[-1]]))
    plain = {"name": "r", "model": {"path": "m"}, "pairs": {"path": str(tmp_path / "pairs.jsonl")}}
    for limits, count in (({"contradiction": "drop"}, 8), ({"contradiction": "drop", "duplicate_row": "drop"}, 6)):
        data = read_data(RewardModelConfig.model_validate({**plain, "held_out": {"prompts": 1}, "limits": limits}))
        assert len(data.train) + len(data.held_out) == count
    # Rows that are dropped count towards no other limit: all but one of these repeat a row too.
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[1:]]))
    strict = {"duplicate_prompt": "drop", "duplicate_row": 0, "contradiction": 1}
    data = read_data(RewardModelConfig.model_validate({**plain, "held_out": {"prompts": 1}, "limits": strict}))
    assert len(data.train) + len(data.held_out) == 9
    with pytest.raises(ValueError, match=r"limits\.refused: drop: reward-model does not look for it"):
        RewardModelConfig.model_validate({**plain, "limits": {"refused": "drop"}})


def test_responses_without_text_are_in_no_pair(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(18)]
    rows += [{"prompt": "empty", "chosen": " ", "rejected": "b"}]
    groups = [
        {"prompt": f"g {n}", "responses": ["a", "" if n == 3 else "b", "c"], "rewards": [1, 2, 3]} for n in range(12)
    ]
    for name, lines in (("pairs", rows), ("groups", groups)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    for name, count in (("pairs", 18), ("groups", 11 * 3 + 1)):
        plain = {"name": "r", "model": {"path": "m"}, "pairs": {"path": str(tmp_path / f"{name}.jsonl")}}
        data = read_data(RewardModelConfig.model_validate({**plain, "held_out": {"prompts": 2}}))
        pairs = [*data.train, *data.held_out]
        assert len(pairs) == count and all(turn.content.strip() for pair in pairs for turn in pair.answers)


def test_the_folder_states_the_version_that_made_it(job: Path, made: Path) -> None:
    assert require_known(made) == Written(RUN_LAYOUT, own_version())
    assert LAYOUT_FILE in read_manifest(made / MANIFEST).files
    later = job / "later"
    later.mkdir()
    (later / LAYOUT_FILE).write_text(json.dumps({"layout": RUN_LAYOUT + 1, "prefloop": "9.1"}))
    with pytest.raises(UserError, match=r"prefloop 9\.1 wrote this run folder, in layout"):
        make(job, later)


def test_a_folder_of_an_earlier_version_is_complete_with_every_split(job: Path, tmp_path: Path) -> None:
    for part, rows in (("train", ROWS[:12]), ("test", ROWS[12:])):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, settings = tmp_path / "out", (f"pairs.path={tmp_path / 'data'}", "training.max_steps=1")
    made = make(job, out, *settings, "pairs.split=all")
    # As 0.1.0 left it: without a version, and without settings that it did not have.
    (out / LAYOUT_FILE).unlink()
    manifest = read_manifest(out / MANIFEST)
    files = {name: facts for name, facts in manifest.files.items() if name != LAYOUT_FILE}
    write_json(out / MANIFEST, plain(replace(manifest, files=files).sealed()))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["pairs"].pop("split") == "all"
    (out / "config.yaml").write_text(f"{yaml.safe_dump(config):<{(out / 'config.yaml').stat().st_size}}")
    assert make(job, out, *settings) == made
    with pytest.raises(UserError, match="holds several splits"):
        make(job, tmp_path / "new", *settings)
