"""Model folders that do not fit what is asked of them are refused before anything is paid for."""

import json
from pathlib import Path

import pytest

from flows.preflight.check import check_run
from flows.preflight.labellers import check_scorer
from flows.preflight.model_folders import check_folder
from pipeline.config import ClassifierScorer, KeywordScorer, RunConfig
from pipeline.config.files import dump_config, load_settings
from pipeline.errors import UserError
from pipeline.types import Message, Prompt
from reward_models.rules import KeywordReward
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer


def run_config(folder: Path, prompt: str = "the cat", **given: object) -> RunConfig:
    data = folder / "prompts.jsonl"
    rows = [{"prompt": f"{prompt} {number}", "answer": "x"} for number in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig.model_validate(
        {
            "name": "x",
            "mode": "iterative",
            "policy": {"kind": "pretrained", "path": str(folder / "model")},
            "prompts": {"kind": "file", "path": str(data)},
            "held_out": {"prompts": 2},
            "scorer": {"kind": "match"},
            **given,
        }
    )


def test_a_token_without_an_embedding_is_found_before_sampling(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    contents, _ = check_run(run_config(tmp_path))
    assert contents.prompts == 6
    tokenizer, rows = tiny_tokenizer(), len(tiny_tokenizer())
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(model)
    assert check_run(run_config(tmp_path))[0].prompts == 6
    with pytest.raises(
        UserError, match=rf"row 1: policy\.path: .*'zebra' the id {rows}, .*embeddings for {rows} tokens"
    ):
        check_run(run_config(tmp_path, "the zebra"))
    # No share of the rows may have such a token: a limit is for rows that are dropped.
    with pytest.raises(UserError, match=rf"row 1: policy\.path: .*embeddings for {rows} tokens"):
        check_run(run_config(tmp_path, "the zebra", limits={"refused": 1}))


def test_what_the_reward_model_cannot_read_is_within_no_limit(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    reward = save_tiny_model(tmp_path / "reward")
    settings = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "LABEL_0"}}))
    scorer = {"kind": "classifier", "path": str(reward)}
    assert check_run(run_config(tmp_path, scorer=scorer))[0].prompts == 6
    tokenizer, rows = tiny_tokenizer(), len(tiny_tokenizer())
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(reward)
    with pytest.raises(UserError, match=rf"row 1: scorer\.path: .*'zebra' the id {rows}, .*embeddings for {rows} tok"):
        check_run(run_config(tmp_path, "the zebra", scorer=scorer, limits={"refused": 1}))
    tiny_tokenizer(template="{{ raise_exception('never') }}").save_pretrained(reward)
    with pytest.raises(UserError, match=r"row 1: scorer\.path: .*refuses turns user, assistant: never"):
        check_run(run_config(tmp_path, scorer=scorer, limits={"refused": 1}))


def test_an_adapter_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"policy\.path: .*: an adapter \(LoRA\), not a whole model; .*'owner/base' first"
    ):
        check_folder(tmp_path, "policy.path")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": [1]}')
    with pytest.raises(UserError, match="the model that it was trained on"):
        check_folder(tmp_path, "policy.path")


def test_a_reward_model_with_several_outputs_needs_one_named(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(UserError, match=r"scorer\.outputs: must be given, since .* has 2 outputs \(0: bad, 1: good\)"):
        check_scorer(ClassifierScorer(path=str(model)))
    plain = ClassifierScorer(path=str(model))
    (tmp_path / "written.yaml").write_text(dump_config(plain))
    again = load_settings(ClassifierScorer, [tmp_path / "written.yaml"])
    with pytest.raises(UserError, match=r"scorer\.outputs: must be given"):
        check_scorer(again)
    first = ClassifierScorer(path=str(model), outputs={0: 1})
    assert first.identity() == plain.identity() == {**plain.identity(), "outputs": {"0": 1.0}}
    check_scorer(first)
    check_scorer(ClassifierScorer(path=str(model), outputs={0: -1, 1: 1}))
    (model / "config.json").write_text(json.dumps({**settings, "id2label": {"0": "LABEL_0"}}))
    check_scorer(ClassifierScorer(path=str(model)))


def test_keywords_without_words_or_an_answer_name_both_settings() -> None:
    with pytest.raises(UserError, match=r"scorer\.words, which is not set, .*columns\.answer"):
        KeywordReward(KeywordScorer()).keywords(Prompt((Message("user", "the cat"),)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "vit"}, "model_type 'vit', which transformers cannot load as a language model"),
        ({"model_type": "t5"}, "model_type 't5', which transformers cannot load as a language model"),
        ({"model_type": "no_such_model"}, "transformers cannot read its config.json"),
        ({"model_type": "llama", "hidden_size": "many"}, "transformers cannot read its config.json"),
    ],
)
def test_a_config_that_is_no_language_model_s_is_refused(given: dict[str, str], message: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (model / "config.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=rf"policy\.path: .*{message}"):
        check_run(run_config(tmp_path))


def test_positions_that_are_scaled_by_the_pass_s_length_are_refused_beyond_the_first_scale(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    (model / "config.json").write_text(json.dumps({**settings, "rope_parameters": rope}))
    chat = {"max_prompt_tokens": 32, "max_response_tokens": 32}
    config = run_config(tmp_path, chat=chat, sampling={"max_tokens": 31})
    assert check_run(config)[0].prompts == 6
    with pytest.raises(UserError, match=r"policy\.path: .*more than 64 tokens.* may have 65; allowed are 64 at most"):
        check_run(run_config(tmp_path, chat=chat, sampling={"max_tokens": 32}))
