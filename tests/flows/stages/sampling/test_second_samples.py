"""Pairs of two policies: the weak one's responses in the policy's tokens, paired without labels, killed and resumed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from flows.run_folder.stage_keys import stage_key
from flows.run_folder.stage_table import made_in
from flows.stages.context import Context, policy_chat
from flows.stages.run import run_stage
from pipeline.config import Pairing
from pipeline.config.files import load_config
from pipeline.errors import UserError
from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.training.pairs.strong_weak import make_strong_weak
from pipeline.types import Group, Message, Pair, Prompt, Response
from tests.support.sampling_here import SamplesHere
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context

SMALL = (
    "sampling={n: 2, max_tokens: 8}",
    "shard_size=3",
    "prompts_per_round=8",
    "scorer=null",
    "pairing.rule=strong_weak",
)
OTHER_TEMPLATE = "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("second"))
    save_tiny_model(folder / "weak", seed=1)
    save_tiny_model(folder / "other", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "other")
    tokenizer.chat_template = OTHER_TEMPLATE
    tokenizer.save_pretrained(folder / "other")
    return folder


def second(job: Path, name: str = "weak", rest: str = "") -> str:
    return f"pairing.second={{path: {job / name}, n: 2{rest}}}"


def sampled(job: Path, root: Path, *settings: str) -> tuple[Context, SamplesHere]:
    context = open_context(job, root, "iterative", *SMALL, *settings)
    begin(context)
    run_stage(context, 0, "second_policy")
    workers: Any = SamplesHere(context.config)
    for name in ("samples", "second_samples"):
        run_stage(context, 1, name, workers)
    return context, workers


def test_each_response_of_the_policy_is_chosen_over_one_of_the_weaker_model(job: Path, tmp_path: Path) -> None:
    context, workers = sampled(job, tmp_path, second(job))
    run_stage(context, 1, "pairs")
    told = context.run.stage(1, "second_samples").require().metrics
    assert (told["as_sampled"], told["encoded_anew"], told["responses"]) == (16, 0, 16)
    handshake: Any = told["weight_handshake"]
    assert handshake["max_difference"] < 1e-3 and str(job / "weak") in workers.swaps
    folders = [context.run.stage(1, name).folder for name in ("samples", "second_samples")]
    own, weak = ({g.prompt.id: g.responses for g in read_groups(folder)} for folder in folders)
    pairs = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    metrics = context.run.stage(1, "pairs").require().metrics
    dropped: Any = metrics["dropped"]
    assert len(pairs) == 16 - sum(dropped.values()) // 2 > 8
    for pair in pairs:
        place = own[pair.prompt.id].index(pair.chosen)
        assert pair.rejected in weak[pair.prompt.id] and pair.rejected.logprobs == ()
        assert (pair.chosen_score, pair.rejected_score, pair.soft_label) == (None, None, 1.0)
        assert dropped["empty"] or pair.rejected == weak[pair.prompt.id][place]
    assert not made_in(context.config, 1, "labels")
    run_stage(context, 1, "reference")
    run_stage(context, 1, "policy")


def test_a_stronger_second_model_is_chosen(job: Path, tmp_path: Path) -> None:
    context, _ = sampled(job, tmp_path, second(job, rest=", role: strong"))
    run_stage(context, 1, "pairs")
    pairs = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    assert pairs and all(pair.chosen.logprobs == () and pair.rejected.logprobs for pair in pairs)


def test_responses_after_another_template_are_encoded_anew_from_their_texts(job: Path, tmp_path: Path) -> None:
    context, _ = sampled(job, tmp_path, second(job, "other"))
    told = context.run.stage(1, "second_samples").require().metrics
    assert (told["as_sampled"], told["encoded_anew"]) == (0, 16)
    ours = policy_chat(context.config, context.policy_path(0))
    for group in read_groups(context.run.stage(1, "second_samples").folder):
        assert group.prompt_ids == ours.prompt_ids(group.prompt.messages)
        for response in group.responses:
            finished = response.finish_reason == "stop"
            assert response.token_ids == ours.response_ids(group.prompt.messages, response.text, finished)
            assert (response.token_ids[-1:] == (ours.end_id,)) == finished


def test_thoughts_cannot_be_written_in_the_policys_tokens(job: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "thinks", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "thinks")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = OTHER_TEMPLATE + "{{ '<think>' }}"
    tokenizer.save_pretrained(tmp_path / "thinks")
    context = open_context(job, tmp_path / "run", "iterative", *SMALL, f"pairing.second.path={tmp_path / 'thinks'}")
    begin(context)
    run_stage(context, 0, "second_policy")
    with pytest.raises(UserError, match=r"pairing\.second\.path: .*thinks.*thoughts"):
        run_stage(context, 1, "second_samples", SamplesHere(context.config))  # type: ignore[arg-type]


def test_a_kill_in_the_midst_of_the_second_models_samples_costs_the_shard_and_changes_no_bit(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = sampled(job, tmp_path / "whole", second(job))
    context = open_context(job, tmp_path / "killed", "iterative", *SMALL, second(job))
    begin(context)
    run_stage(context, 0, "second_policy")
    workers: Any = SamplesHere(context.config)
    draw = workers.sample_second

    def killed(*asked: Any) -> Any:
        for number, answer in enumerate(draw(*asked)):
            if number == 4:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(workers, "sample_second", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(context, 1, "second_samples", workers)
    again: Any = SamplesHere(context.config)
    run_stage(context, 1, "second_samples", again)
    assert again.second == 5
    same = [list(read_groups(c.run.stage(1, "second_samples").folder)) for c in (context, whole)]
    assert same[0] == same[1]


def test_the_keys_hold_the_second_models_files_and_how_it_is_sampled(job: Path, tmp_path: Path) -> None:
    context, _ = sampled(job, tmp_path, second(job))
    key = stage_key(context.run, context.config, 1, "second_samples")
    told: Any = key.config["second"]
    assert told["n"] == 2 and "round_000/second_policy" in key.inputs
    assert stage_key(context.run, context.config, 0, "second_policy").config["model_files"]
    pairs = stage_key(context.run, context.config, 1, "pairs")
    assert {"round_001/samples", "round_001/second_samples"} <= pairs.inputs.keys()
    more = load_config([job / "iterative.yaml"], [*SMALL, f"pairing.second={{path: {job / 'weak'}, n: 3}}"])
    assert stage_key(context.run, more, 1, "samples") == stage_key(context.run, context.config, 1, "samples")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["pairing.rule=strong_weak"], "pairing.second: rule strong_weak"),
        (["pairing.second={path: x/y}"], "pairing.second: rule best_worst does not read it"),
        (["pairing={rule: strong_weak, min_margin: 1, second: {path: x/y}}"], "pairing.min_margin: rule strong_weak"),
        (
            ["mode=offline", "pairing={rule: strong_weak, second: {path: x/y}}"],
            "offline mode has those of the data set",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(job: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config([job / "iterative.yaml"], settings)


def group(name: str, *texts: str) -> Group:
    """Of one token for each letter."""
    prompt = Prompt((Message("user", name),))
    said = (Response(text, tuple(map(ord, text)), (), "stop") for text in texts)
    return Group(prompt, (1, 2), tuple(said))


def test_what_makes_no_pair_is_counted() -> None:
    settings = Pairing.model_validate({"rule": "strong_weak", "max_similarity": 0.7, "second": {"path": "weak"}})
    own = [group("a", "abc", "def"), group("b", "abc"), group("c", "abcdefgh"), group("d", "abc"), group("e", " ")]
    weak = [group("a", "xyz"), group("c", "abcdefgx"), group("d", "abc"), group("e", "x"), group("f", "x")]
    counted = Counter[str]()
    pairs = list(make_strong_weak(own, weak, settings, 3, dropped=counted))
    assert [(p.chosen.text, p.rejected.text, p.round) for p in pairs] == [("abc", "xyz", 3)]
    # Left over: the second of a, all of b and of f, and the weak one of e.
    assert {cause: n for cause, n in counted.items() if n} == {
        "no_partner": 4,
        "near_duplicate": 1,
        "same": 1,
        "empty": 1,
    }
