import sys
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.loop.preparation import prepare_run
from pipeline.config.files import load_config
from tests.support.small_config import write_small_config
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    return write_small_config(tmp_path, model)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the commands write goes to runs/ of the folder that they run in.
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prefloop", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and len(message.splitlines()) <= 10
    return message


def test_check_says_what_would_run(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", config) == 0
    assert "prompts: 6" in (said := capsys.readouterr().out) and "held out: 2" in said
    assert "6 prompts x 4 responses" in said and "loss dpo reads reference, rejected" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["policy.path=/no/such/model"], ["policy.path", "/no/such/model", "no such model folder"]),
        (["prompts.path=/no/such/file.jsonl"], ["/no/such/file.jsonl", "no such file"]),
        (["sampling.n=1"], ["sampling.n", "at least 2"]),
        (["held_out.prompts=8"], ["held_out.prompts", "8"]),
        (["scorer.kind=classifier", "scorer.path=/no/reward"], ["scorer.path", "/no/reward"]),
        (["scorer.pattern='('", "scorer.kind=match"], ["scorer.pattern", "'('"]),
        (["prompts.columns.answer=none"], ["needs an answer", "columns.answer"]),
        (["chat.max_prompt_tokens=2"], ["chat.max_prompt_tokens", "long_for_policy: 8 of 8 rows"]),
        (["policy.path=configs/typo"], ["policy.path", "configs/typo", "no such model folder"]),
        (["loss.preset=dpoo"], ["loss.preset", "'dpoo' is not a loss; did you mean 'dpo'?"]),
        (["loss.preset=apo"], ["loss.preset", "'apo' is ambiguous", "apo_accelerated", "apo_zero or apo_down"]),
        (["loss.preset=apo_accelerated"], ["rounds: 1", "two checkpoints"]),
        (["loss.preset=mrpo"], ["training.references: 0", "2 references"]),
        (["loss.preset=tis_dpo"], ["training.contrastive", "two contrasting models"]),
        (["loss={preset: dpo, prior: given}"], ["loss.prior", "given", "iterative"]),
        (["loss={preset: kto, prior: {kind: length}}"], ["loss.prior", "length is not normalised", "one-sided"]),
        (["loss={preset: robust_dpo, epsilon: 0.5}"], ["loss.label.epsilon", "less than 0.5", "0.5"]),
        (["loss.preset=d2po_decay", "loss.gamma=1.5"], ["loss.weights.gamma", "less than or equal to 1", "1.5"]),
        (["loss={preset: tdpo1, reference_free: true}"], ["loss.reference_free", "tdpo1 needs a reference"]),
        (["loss.preset=rpo_sqloo", "sampling.n=1"], ["sampling.n", "1 response", "at least 2"]),
    ],
)
def test_mistakes_end_with_exit_code_2_before_anything_is_written(
    settings: list[str],
    expected: list[str],
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in (["check"], ["run", "--run-dir", str(tmp_path / "out")]):
        message = refused(monkeypatch, capsys, *command, config, *settings)
        assert all(part in message for part in expected), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("until", ["1", "1:policies", "0:samples", "2:pairs", "x:pairs"])
def test_a_stage_to_stop_after_must_be_one_of_the_run(
    until: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(monkeypatch, capsys, "run", config, "--run-dir", tmp_path / "out", "--until", until)
    assert f"--until: {until}: not ROUND:STAGE with a round from 0 to 1" in message
    assert "samples, gold, discriminator, labels" in message
    assert not (tmp_path / "out").exists()


def test_malformed_rows_are_named_by_file_and_number(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"prompt": 3}\nnot json\n')
    message = refused(monkeypatch, capsys, "run", "--run-dir", tmp_path / "out", config, f"prompts.path={bad}")
    assert f"{bad}, row 2: prompt" in message and f"{bad}, row 3: not JSON" in message
    assert not (tmp_path / "out").exists()
    bad.write_text("")
    assert "no rows" in refused(monkeypatch, capsys, "check", config, f"prompts.path={bad}")


def test_a_model_without_tokenizer_or_weights_is_refused(
    config: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((model / "config.json").read_text())
    assert "no safetensors weights" in refused(monkeypatch, capsys, "check", config, f"policy.path={broken}")
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert "no tokenizer files" in refused(monkeypatch, capsys, "check", config, f"policy.path={broken}")


def test_a_folder_with_another_config_names_the_changed_field(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_run(load_config([config]), tmp_path / "out")
    before = (tmp_path / "out" / "config.yaml").read_text()
    run = ["run", "--run-dir", tmp_path / "out", config]
    assert "training.learning_rate: 1e-06 -> 0.5" in refused(monkeypatch, capsys, *run, "training.learning_rate=0.5")
    assert "rounds: 1 -> 2" in (message := refused(monkeypatch, capsys, *run, "rounds=2")) and "--extend" in message
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "not a run folder" in refused(monkeypatch, capsys, "run", "--run-dir", tmp_path / "other", config)
    assert (tmp_path / "out" / "config.yaml").read_text() == before
    prepare_run(load_config([config], ["rounds=2"]), tmp_path / "out", extend=True)


def test_a_folder_that_a_kill_left_at_its_very_start_is_taken_up(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    (tmp_path / "out" / "config.yaml.tmp").write_text("name: t")
    assert prepare_run(load_config([config]), tmp_path / "out").config_file.is_file()


def test_held_out_prompts_from_a_file_must_not_be_training_prompts(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "say 3", "answer": "3"}\n{"prompt": "new", "answer": "1"}\n')
    message = refused(monkeypatch, capsys, "check", config, f"held_out.path={held}")
    assert "prompts: leak: 1 of 8 rows" in message and "row 4: held out" in message and "'say 3'" in message


def test_show_refuses_what_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not a run folder" in refused(monkeypatch, capsys, "show", tmp_path)


def test_unknown_commands_and_options_end_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "walk") == 2
    assert call(monkeypatch, "run") == 2


@pytest.mark.parametrize("command", ["run", "sweep", "reward-model"])
def test_a_launcher_of_several_processes_is_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    # As torchrun and ``accelerate launch`` set them.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "started this command 2 times (WORLD_SIZE); start it once" in refused(monkeypatch, capsys, command, config)
    assert call(monkeypatch, "check", config) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "WORLD_SIZE" not in refused(monkeypatch, capsys, command, config, "no.such=1")
