"""What no file of ours may do, and what every reader of foreign files refuses: pickles, code, tags, other addresses."""

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from flows.preflight.check import check_config
from flows.preflight.model_folders import check_folder
from pipeline.config import ChatSettings, ClassifierScorer, FunctionScorer, RunConfig, TransformersSampler
from pipeline.config.files import load_config, read_yaml
from pipeline.errors import RunError, UserError
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy
from pipeline.sampling.transformers_engine import TransformersEngine
from reward_models.function import FunctionReward
from reward_models.local.classifier import ClassifierReward
from tests.support.places import ROOT
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context

PARTS = ("pipeline", "reward_models", "flows", "prefloop")
SOURCES = [file for part in PARTS for file in sorted((ROOT / part).rglob("*.py"))]


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    """Every call in our sources, with what is called."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), node


def test_models_are_only_loaded_with_their_code_off_or_as_the_config_says() -> None:
    loaded = [(file, node) for file, name, node in calls() if name.endswith((".from_pretrained", ".from_config"))]
    assert len(loaded) > 5
    for file, node in loaded:
        spread = any(keyword.arg is None for keyword in node.keywords)
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
        where = f"{file.name}:{node.lineno}"
        assert spread or "trust_remote_code" in named, where
        assert named.get("trust_remote_code") != "True", where


def test_yaml_is_only_read_by_safe_loaders() -> None:
    others = {name for _, name, _ in calls() if name.startswith("yaml.") and "load" in name} - {"yaml.safe_load"}
    assert others == {"yaml.load"}
    loads = [(file.name, ast.unparse(node)) for file, name, node in calls() if name == "yaml.load"]
    assert loads and all(file == "yaml_text.py" and "Loader=_StrictLoader" in said for file, said in loads)


def test_nothing_is_evaluated_but_the_file_that_the_user_names() -> None:
    used = {(file.name, name) for file, name, _ in calls() if name in ("exec", "eval", "__import__", "os.system")}
    assert used == {("function.py", "exec")}
    assert not [node for _, name, node in calls() for keyword in node.keywords if keyword.arg == "shell"]


def test_no_server_listens_on_other_addresses() -> None:
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text and '"::"' not in text, file


# ---------------------------------------------------------------- pickles


class Opened:
    """What a pickle that is opened calls."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A model folder whose only weights are a pickle that leaves a mark when it is opened."""
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    return folder


def test_folders_with_pickled_weights_are_refused_unopened(pickled: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3)
    config = tmp_path / "config.yaml"
    source = f"pairs: {{path: {pairs}}}"
    config.write_text(f"name: x\nmode: offline\npolicy: {{path: {pickled}}}\n{source}\n")
    refused = (
        lambda: check_config([config], []),
        lambda: load_policy(str(pickled)),
        lambda: check_folder(pickled, "scorer.path"),
        lambda: ClassifierReward(ClassifierScorer(path=str(pickled))),
        lambda: TransformersEngine(str(pickled), load_chat(str(pickled), ChatSettings()), TransformersSampler()),
    )
    for read in refused:
        with pytest.raises((UserError, RunError), match="safetensors"):
            read()
    assert not (tmp_path / "opened").exists()
    # What the mark is worth.
    pickle.loads((pickled / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "opened").exists()


def test_a_pickle_beside_the_weights_is_not_opened(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    load_policy(str(folder))
    load_chat(str(folder), ChatSettings())
    assert not (tmp_path / "opened").exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    # Beside them first: the tensors are mapped from the file.
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pickled")
    (tmp_path / "pickled").replace(folder / "model.safetensors")
    with pytest.raises(UserError, match="model"):
        load_policy(str(folder))


# ---------------------------------------------------------------- code that ships with a model


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A model folder whose model, config and tokenizer are of classes that it brings, which leave a mark when run."""
    folder = save_tiny_model(tmp_path / "coded")
    code = (
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (folder / "own.py").write_text(code)
    plain = json.loads((folder / "config.json").read_text())
    plain |= {"model_type": "own", "architectures": ["Own"]}
    plain["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(plain))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_that_ships_with_a_model_runs_only_where_the_config_trusts_it(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for read in (
        lambda: load_policy(str(coded)),
        lambda: load_chat(str(coded), ChatSettings()),
        lambda: ClassifierReward(ClassifierScorer(path=str(coded))),
    ):
        with pytest.raises(UserError, match="custom code"):
            read()
    assert not (tmp_path / "ran").exists()
    AutoTokenizer.from_pretrained(coded, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_trust_in_the_policy_is_none_in_other_models(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    plain = open_context(job, tmp_path / "run", "offline")
    begin(plain)
    policy, made, other = job / "model", plain.run.root / "round_001" / "policy", tmp_path / "another"
    assert policy == plain.policy_path(0) and not any(map(plain.trusts, (policy, made, other)))
    trusting = open_context(job, tmp_path / "trusting", "offline", "policy.trust_remote_code=true")
    begin(trusting)
    assert trusting.config.policy.path == str(policy)  # type: ignore[union-attr]
    assert trusting.trusts(policy) and trusting.trusts(str(trusting.run.root / "round_001" / "policy"))
    assert not any(map(trusting.trusts, (other, made, "acme/model")))


def test_trust_is_off_unless_the_config_names_the_model() -> None:
    plain: dict[str, Any] = {"name": "x", "mode": "offline", "pairs": {"path": "p"}}
    assert not RunConfig.model_validate({**plain, "policy": {"path": "m"}}).trusts_policy
    trusting = RunConfig.model_validate({**plain, "policy": {"path": "m", "trust_remote_code": True}})
    assert trusting.trusts_policy and not ClassifierScorer(path="m").trust_remote_code


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {mark}']\n",
        "!!python/object/new:pathlib.Path ['{mark}']\n",
        "name: !!python/name:os.system\n",
        "a: &a [x]\nb: [*a, *a]\n",
        "name: !!binary aGk=\n",
    ],
)
def test_yaml_makes_nothing_but_plain_values(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("{mark}", str(tmp_path / "ran")))
    with pytest.raises(UserError, match="are not used in configs"):
        read_yaml(file)
    with pytest.raises(UserError, match="not valid YAML"):
        load_config([], [f"name={text.partition(': ')[2].strip() or text.strip()}"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "..", ".", "a..b", "a\nb", "a\0b", "~", "-x", "a\u202eb", ""]
)
def test_the_name_of_a_run_cannot_leave_its_folder(name: str) -> None:
    plain: dict[str, Any] = {"mode": "offline", "policy": {"path": "m"}, "pairs": {"path": "p"}}
    with pytest.raises(ValueError, match="name"):
        RunConfig.model_validate({**plain, "name": name})


def test_a_reward_function_is_loaded_from_the_file_that_is_named_and_from_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards.py").write_text("def reward(prompt, response, answer):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    FunctionReward(FunctionScorer(file="rewards.py"))
    for named in ("rewards", "os.system", "flows.rewards", "https://evil.example/rewards.py", "os"):
        with pytest.raises(UserError, match="cannot be read"):
            FunctionReward(FunctionScorer(file=named))
    with pytest.raises(UserError, match="has no function"):
        FunctionReward(FunctionScorer(file="rewards.py", name="__builtins__"))
