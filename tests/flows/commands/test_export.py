"""A round's policy as a folder of its own, full or trained through an adapter, in transformers and in vLLM."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.commands.export import export_policy
from flows.report.model_card import write_card
from flows.run_folder.approvals import record_approval
from flows.stages.context import Context
from pipeline.config import SamplingSettings
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.sampling.sampler import SampleRequest
from pipeline.storage.atomic import write_text
from tests.support.gates import decided
from tests.support.tiny_run import begin, make_job, open_context, train
from tests.support.tiny_sampler import vllm_process

LORA = "training.lora={rank: 4, alpha: 64, target_modules: [q_proj, v_proj]}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module", params=[(), (LORA,)], ids=["full", "lora"])
def trained(request: pytest.FixtureRequest, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    context = open_context(job, tmp_path_factory.mktemp("runs") / "run", "offline", *request.param)
    begin(context)
    train(context, 1)
    write_text(context.run.config_file, dump_config(context.config))
    return context


def scores(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[9, 20, 33, 41, 50]])).logits
    return logits.log_softmax(-1)


@pytest.mark.whole
def test_transformers_and_vllm_load_what_was_trained(trained: Context, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    assert "round 1 of tiny" in export_policy(trained.run.root, out, None)
    assert not {file.name for file in out.iterdir()} & {"probe.json", "steps.jsonl", "manifest.json", "optimiser"}
    assert [file.name for file in out.parent.iterdir()] == ["model"]

    policy = trained.policy_path(1)
    # transformers itself puts an adapter on the weights that it names; merged, they are rounded otherwise.
    apart = 1e-5 if trained.config.training.lora is not None else 0
    torch.testing.assert_close(scores(out), scores(policy), atol=apart, rtol=0)
    assert not torch.allclose(scores(out), scores(trained.policy_path(0)), atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(trained.policy_path(0)).chat_template
    assert (out / "README.md").read_text().startswith("---\n")

    with vllm_process(tmp_path / "log", start_timeout=600) as engine:
        # Refused where the engine does not say of the probe's tokens what the trained model said.
        assert engine.load(str(out), str(policy)).max_difference < 1e-3
        ((response,),) = engine.sample([SampleRequest((9, 20), 0)], SamplingSettings(n=1, max_tokens=4))
    assert 1 <= len(response.token_ids) <= 4


def test_nothing_is_written_over_or_by_halves(trained: Context, tmp_path: Path) -> None:
    root = trained.run.root
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        export_policy(root, tmp_path / "full", None)
    with pytest.raises(UserError, match=r"no policy of round 2 yet; rounds that have one: 0, 1"):
        export_policy(root, tmp_path / "other", 2)
    with pytest.raises(UserError, match="not a run folder"):
        export_policy(tmp_path, tmp_path / "other", None)
    for round_ in (0, 1):
        (weights,) = trained.policy_path(round_).glob("*.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        try:
            with pytest.raises(RunError, match=r"model.safetensors: (does not match its manifest|has changed since)"):
                export_policy(root, tmp_path / "other", round_)
        finally:
            weights.write_bytes(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full"]
    (tmp_path / "empty").mkdir()
    export_policy(root, tmp_path / "empty", 0)
    assert (tmp_path / "empty" / "config.json").is_file()


def test_an_adapter_is_exported_alone_or_merged_and_a_whole_model_has_none(trained: Context, tmp_path: Path) -> None:
    if trained.config.training.lora is None:
        with pytest.raises(UserError, match=r"--adapter: the policy of round 1 is a whole model; allowed: --merged"):
            export_policy(trained.run.root, tmp_path / "adapter", 1, adapter=True)
        assert not [*tmp_path.iterdir()]
        return
    export_policy(trained.run.root, tmp_path / "adapter", 1, adapter=True)
    export_policy(trained.run.root, tmp_path / "merged", 1)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == trained.policy_path(0).absolute()
    base = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    with torch.no_grad():
        ours = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(torch.tensor([[9, 20, 33, 41, 50]])).logits
    torch.testing.assert_close(ours.log_softmax(-1), scores(tmp_path / "merged"), atol=1e-5, rtol=0)
    sizes = [
        (tmp_path / name).stat().st_size for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors")
    ]
    assert sizes[0] * 10 < sizes[1]
    with pytest.raises(UserError, match="policy of round 0 is a whole model"):
        export_policy(trained.run.root, tmp_path / "start", 0, adapter=True)


def test_cards_are_of_policies_that_were_promoted(trained: Context, tmp_path: Path) -> None:
    run, config = trained.run, trained.config
    file = write_card(run, config, 1)
    assert file == run.root / "cards" / "round_001.md" and "held-out prompts" in file.read_text()
    decided(run, 1, "pause", 0, "too long")
    try:
        assert write_card(run, config, 1) is None
        # The best round is what is exported.
        assert "round 0 of tiny" in export_policy(run.root, tmp_path / "best", None)
        record_approval(run.root, 1, "promote", "me")
        assert write_card(run, config, 1) is not None
    finally:
        shutil.rmtree(run.stage(1, "gate").folder)
