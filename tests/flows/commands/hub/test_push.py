"""What comes to a hub: all of it and nothing else, in private, with a token from the environment, and once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from flows.commands.hub.push import What, push_result
from flows.stages.context import Context
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_preference_rows
from tests.support.hub_server import Hub, hub_server
from tests.support.tiny_run import begin, make_job, open_context, train

# huggingface_hub sends its commits in a way that its own client calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_averysecrettokenofmine"
LORA = "training.lora={rank: 4, alpha: 64, target_modules: [q_proj, v_proj]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Context:
    job = make_job(tmp_path_factory.mktemp("job"))
    context = open_context(job, tmp_path_factory.mktemp("runs") / "run", "offline", LORA)
    begin(context)
    train(context, 1)
    write_text(context.run.config_file, dump_config(context.config))
    return context


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The stand-in has no chunk store.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_server(TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def pushed(
    context: Context,
    what: What = "policy",
    *,
    public: bool = False,
    base: str | None = None,
    round_: int | None = None,
    dry: bool = False,
) -> str:
    return push_result(context.run.root, "me/tiny", what, round_, public=public, base=base, dry_run=dry)


def test_a_policy_comes_whole_and_private_with_its_card(
    trained: Context, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    address = pushed(trained)
    assert address == f"{hub.url}/models/me/tiny/commit/{'1' * 40}"
    assert hub.repositories == {"models/me/tiny": True}
    files = hub.files["models/me/tiny"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert not files.keys() & {"probe.json", "steps.jsonl", "manifest.json"}
    assert files["README.md"].startswith(b"---\n") and b"prefloop" in files["README.md"]
    here = str(trained.run.root.parent).encode()
    assert [name for name, content in files.items() if here in content or TOKEN.encode() in content] == []
    said = capsys.readouterr()
    assert "me/tiny (private): " in said.err and "model.safetensors  " in said.err
    assert TOKEN not in said.out + said.err
    assert [file.name for file in trained.run.root.parent.iterdir()] == ["run"]


def test_what_was_brought_before_a_failure_is_not_sent_again(trained: Context, hub: Hub) -> None:
    hub.failing = 1
    with pytest.raises(RunError, match=r"me/tiny: the hub failed \(500\); the same command goes on"):
        pushed(trained)
    assert (len(hub.stored) == 1 and hub.files == {"models/me/tiny": {}}) or not hub.files
    pushed(trained)
    assert len(hub.stored) == 1 and "model.safetensors" in hub.files["models/me/tiny"]


def test_an_adapter_names_its_base_by_a_repository(trained: Context, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"--base: the adapter is one of the folder .*; name the repository"):
        pushed(trained, "adapter")
    assert hub.asked == []
    pushed(trained, "adapter", base="me/start")
    files = hub.files["models/me/tiny"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/start"
    assert "model.safetensors" not in files and "adapter_model.safetensors" in files
    with pytest.raises(UserError, match="--base: only with --what adapter"):
        pushed(trained, base="me/start")


def test_pairs_come_with_their_labels_as_a_data_set(trained: Context, hub: Hub) -> None:
    pushed(trained, "pairs", round_=1)
    assert hub.repositories == {"datasets/me/tiny": True}
    files = hub.files["datasets/me/tiny"]
    assert files.keys() == {"README.md", "data/round_001.jsonl"}
    rows = [json.loads(line) for line in files["data/round_001.jsonl"].splitlines()]
    made = [*read_preference_rows(trained.run.stage(1, "pairs").folder)]
    assert len(rows) == len(made) > 0 and all({"prompt", "chosen", "rejected"} <= row.keys() for row in rows)
    assert f"| 1 | {len(made)} | data/round\\_001".replace("\\", "") in files["README.md"].decode()
    with pytest.raises(UserError, match=r"--round: .* has no pairs of round 7 yet"):
        pushed(trained, "pairs", round_=7)


def test_a_dry_run_only_says_what_it_would_upload(
    trained: Context, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "nothing was uploaded" in pushed(trained, "pairs", dry=True)
    assert hub.asked == [] and "data/round_001.jsonl  " in capsys.readouterr().err


def test_nothing_goes_to_a_repository_that_all_can_see_unless_that_is_said(trained: Context, hub: Hub) -> None:
    hub.repositories["datasets/me/tiny"] = False
    with pytest.raises(UserError, match="me/tiny: everybody can see this repository; with --public"):
        pushed(trained, "pairs")
    assert hub.files == {}
    pushed(trained, "pairs", public=True)
    assert "README.md" in hub.files["datasets/me/tiny"]


def test_a_token_that_is_missing_or_refused_is_named_and_not_shown(
    trained: Context, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_anothersecrettoken")
    with pytest.raises(UserError, match=r"HF_TOKEN: the hub refuses it for me/tiny \(401\)") as refused:
        pushed(trained, "pairs")
    assert "hf_another" not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN: not set; put a token with write access to me/tiny"):
        pushed(trained, "pairs")


def test_a_hub_out_of_reach_and_a_wrong_name_are_told(
    trained: Context, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"allowed: OWNER/NAME"):
        push_result(trained.run.root, "me/a/b", "pairs", None, public=False, base=None, dry_run=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"me/tiny: the upload failed \(.*refused"):
        pushed(trained, "pairs")
    with pytest.raises(UserError, match="not a run folder"):
        push_result(tmp_path, "me/tiny", "pairs", None, public=False, base=None, dry_run=False)
