"""One suite for all three samplers: whatever draws the tokens, the same ids and log-probabilities come out."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from pipeline import config
from pipeline.config import SamplingSettings
from pipeline.errors import UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.sampling.sampler import SampleRequest, engine_dtype, make_response, room_for, sample_seeds
from pipeline.sampling.server_engine import ServerEngine
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.types import Message, Response
from tests.support.tiny_model import CONTEXT, reference_scores, save_tiny_model
from tests.support.tiny_sampler import vllm_process, write_true_probe

Kind = Literal["vllm", "transformers", "server"]
Answer = tuple[SampleRequest, tuple[int, ...]]
END_IDS = {2, 6}
GREEDY = SamplingSettings(n=1, temperature=0, max_tokens=20)


class Engine(Protocol):
    def sample(self, requests: list[SampleRequest], settings: SamplingSettings) -> Iterator[tuple[Response, ...]]: ...
    def score(self, sequences: list[list[int]]) -> list[list[float]]: ...
    def ranked(self, sequences: list[list[int]]) -> list[list[tuple[float, bool]]]: ...


def sampled(engine: Engine, requests: list[SampleRequest], settings: SamplingSettings) -> list[tuple[Response, ...]]:
    return list(engine.sample(requests, settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return load_chat(str(folder), config.ChatSettings())


@pytest.fixture(scope="module", params=["vllm", "transformers", pytest.param("server", marks=pytest.mark.whole)])
def engine(
    request: pytest.FixtureRequest, folder: Path, chat: Chat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    kind: Kind = request.param
    match kind:
        case "vllm":
            # So few at once that most samples wait for room.
            with vllm_process(tmp_path_factory.mktemp("log") / "log", max_num_seqs=6) as process:
                process.load(str(folder))
                yield process
        case "transformers":
            made = TransformersEngine(str(folder), chat, config.TransformersSampler(dtype="float32", batch_size=7))
            yield made
            made.close()
        case "server":
            server = ServerEngine(str(folder), chat, config.ServerSampler(dtype="float32", start_timeout=400))
            yield server
            server.close()


def requests(count: int, low: int = 3, high: int = 30) -> list[SampleRequest]:
    draw = random.Random(1)
    return [
        SampleRequest(tuple(draw.randrange(7, 290) for _ in range(draw.randint(low, high))), i) for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LlamaForCausalLM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the engine's threads are pinned to the same cores
    yield LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def greedy_answers(model: LlamaForCausalLM) -> list[Answer]:
    return [(r, greedy(model, r.prompt_ids, 20)) for r in requests(16)]


def next_logprobs(model: LlamaForCausalLM | GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


def greedy(model: LlamaForCausalLM | GPT2LMHeadModel, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """By whole forward passes: no cache, no batch."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and not (ids[len(prompt) :] and ids[-1] in END_IDS):
        ids.append(int(next_logprobs(model, ids).argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_ids_are_those_of_plain_forward_passes(engine: Engine, greedy_answers: list[Answer]) -> None:
    answers = sampled(engine, [request for request, _ in greedy_answers], GREEDY)
    assert [group[0].token_ids for group in answers] == [ids for _, ids in greedy_answers]
    assert {group[0].finish_reason for group in answers} == {"stop", "length"}


def test_logprobs_are_the_model_s_own_whatever_the_temperature_and_cuts(engine: Engine, folder: Path) -> None:
    asked = requests(6)
    settings = SamplingSettings(n=2, temperature=0.6, top_p=0.8, top_k=20, min_p=0.01, max_tokens=20)
    for request, group in zip(asked, sampled(engine, asked, settings), strict=True):
        for response in group:
            whole = [*request.prompt_ids, *response.token_ids]
            expected = reference_scores(folder, [whole])[0][len(request.prompt_ids) - 1 :]
            assert response.logprobs == pytest.approx(expected, abs=1e-4)


def test_scores_are_those_of_plain_forward_passes(engine: Engine, folder: Path) -> None:
    draw = random.Random(2)
    sequences = [[draw.randrange(7, 290) for _ in range(length)] for length in (2, 5, 40, 200, CONTEXT - 1, CONTEXT)]
    expected = reference_scores(folder, sequences)
    for _ in range(2):  # the second time every prefix is in the engine's cache
        for got, wanted in zip(engine.score(sequences), expected, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)


def test_the_likeliest_tokens_are_told(engine: Engine, greedy_answers: list[Answer]) -> None:
    whole = [[*request.prompt_ids, *ids] for request, ids in greedy_answers]
    other = [[*ids[:-1], 7 if ids[-1] != 7 else 8] for ids in whole]
    for (request, ids), row in zip(greedy_answers, engine.ranked(whole), strict=True):
        assert [best for _, best in row[len(request.prompt_ids) - 1 :]] == [True] * len(ids)
    assert [row[-1][1] for row in engine.ranked(other)] == [False] * len(other)
    for got, wanted in zip(engine.ranked(whole), engine.score(whole), strict=True):
        assert [logprob for logprob, _ in got] == pytest.approx(wanted, abs=1e-4)


def test_an_end_token_only_where_the_model_stopped(engine: Engine) -> None:
    settings = SamplingSettings(n=8, temperature=1.5, max_tokens=40)
    responses = [r for group in sampled(engine, requests(12), settings) for r in group]
    assert {r.finish_reason for r in responses} == {"stop", "length"}
    for response in responses:
        ends = [i for i, token in enumerate(response.token_ids) if token in END_IDS]
        assert ends == ([len(response.token_ids) - 1] if response.finish_reason == "stop" else [])
        assert len(response.logprobs) == len(response.token_ids) <= 40
        if response.finish_reason == "length":
            assert len(response.token_ids) == 40


def test_a_sample_depends_on_its_seed_alone(engine: Engine) -> None:
    settings = SamplingSettings(n=4, max_tokens=12)
    asked = requests(9)
    first = sampled(engine, asked, settings)
    assert all(len({r.token_ids for r in group}) == 4 for group in first)
    assert _same_ids(sampled(engine, asked, settings), first)
    # Another batch, another order, fewer samples.
    assert _same_ids(sampled(engine, asked[::-1], settings), first[::-1])
    assert _same_ids(sampled(engine, asked[3:4], settings), first[3:4])
    assert _same_ids(sampled(engine, asked, settings.model_copy(update={"n": 2})), [group[:2] for group in first])
    reseeded = sampled(engine, [SampleRequest(r.prompt_ids, r.seed + 1000) for r in asked], settings)
    assert all(
        a.token_ids != b.token_ids
        for one, other in zip(first, reseeded, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def _same_ids(one: list[tuple[Response, ...]], other: list[tuple[Response, ...]]) -> bool:
    return [[r.token_ids for r in g] for g in one] == [[r.token_ids for r in g] for g in other]


def first_tokens(engine: Engine, prompt: tuple[int, ...], settings: SamplingSettings) -> Counter[int]:
    return Counter(r.token_ids[0] for r in sampled(engine, [SampleRequest(prompt, 5)], settings)[0])


def test_frequencies_follow_the_tempered_distribution(engine: Engine, model: LlamaForCausalLM) -> None:
    prompt, n = requests(1)[0].prompt_ids, 1024
    counts = first_tokens(engine, prompt, SamplingSettings(n=n, temperature=0.5, max_tokens=1))
    probabilities = (next_logprobs(model, list(prompt)) / 0.5).softmax(-1)
    for p, token in zip(*probabilities.topk(5), strict=True):
        assert abs(counts[int(token)] - n * float(p)) < 5 * (n * float(p) * (1 - float(p))) ** 0.5


def test_cuts_leave_exactly_the_tokens_that_they_should(engine: Engine, model: LlamaForCausalLM) -> None:
    prompt = requests(1)[0].prompt_ids
    ordered = next_logprobs(model, list(prompt)).softmax(-1).sort(descending=True)
    top = ordered.indices.tolist()
    nucleus = int((ordered.values.cumsum(0) < 0.2).sum()) + 1
    likely = int((ordered.values >= 0.5 * ordered.values[0]).sum())
    assert 1 < nucleus < 12
    assert 1 < likely < 12
    for cut, kept in ({"top_k": 3}, 3), ({"top_p": 0.2}, nucleus), ({"min_p": 0.5}, likely):
        settings = SamplingSettings.model_validate({"n": 256, "max_tokens": 1, **cut})
        assert set(first_tokens(engine, prompt, settings)) == set(top[:kept]), cut


def test_max_tokens_is_clipped_to_the_room_that_the_prompt_leaves(engine: Engine, model: LlamaForCausalLM) -> None:
    asked = [r for r in requests(4, CONTEXT - 3, CONTEXT - 3) if len(greedy(model, r.prompt_ids, 3)) == 3]
    assert asked
    for group in sampled(engine, asked, SamplingSettings(n=1, temperature=0, max_tokens=100)):
        assert (len(group[0].token_ids), group[0].finish_reason) == (3, "length")


def test_a_prompt_that_fills_the_context_is_an_error(engine: Engine) -> None:
    with pytest.raises(UserError, match=f"a prompt of {CONTEXT} tokens leaves no room"):
        sampled(engine, requests(1, CONTEXT, CONTEXT), SamplingSettings(n=1))


def test_a_sequence_longer_than_the_context_cannot_be_scored(engine: Engine) -> None:
    with pytest.raises(UserError, match="does not fit"):
        engine.score([[9] * (CONTEXT + 1)])


def test_stop_strings_end_a_response_and_stay_out_of_its_text(
    engine: Engine, greedy_answers: list[Answer], chat: Chat
) -> None:
    for request, ids in [answer for answer in greedy_answers if len(answer[1]) == GREEDY.max_tokens][:4]:
        texts = [chat.decode((i,)) for i in ids]
        # The first printable token from the fourth on whose text did not come before.
        at = next(i for i in range(3, len(ids)) if texts[i].isascii() and texts[i] not in chat.decode(ids[:i]))
        settings = GREEDY.model_copy(update={"stop": (texts[at],)})
        response = sampled(engine, [request], settings)[0][0]
        assert response.token_ids == ids[: at + 1]
        assert response.finish_reason == "stop"
        assert response.text == chat.decode(ids[:at])


def test_more_prompt_tokens_than_one_engine_step_takes(engine: Engine) -> None:
    # vLLM on CPU takes 4096 a step; with split prompts, seeded requests end its engine.
    answers = sampled(engine, requests(40, 150, 290), SamplingSettings(n=2, max_tokens=2))
    assert all(len(group) == 2 for group in answers)


def test_nothing_asked_nothing_answered(engine: Engine) -> None:
    assert sampled(engine, [], SamplingSettings()) == []
    assert engine.score([]) == []


def test_padding_does_not_shift_absolute_positions(tmp_path: Path, chat: Chat, folder: Path) -> None:
    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2, initializer_range=0.3)
    gpt2 = GPT2LMHeadModel(settings).eval()
    gpt2.save_pretrained(tmp_path)
    engine = TransformersEngine(str(tmp_path), chat, config.TransformersSampler(dtype="float32"))
    asked = requests(6)
    answers = sampled(engine, asked, GREEDY)
    assert [group[0].token_ids for group in answers] == [greedy(gpt2, r.prompt_ids, 20) for r in asked]


# ---------------------------------------------------------------- the rules that they share


def test_seeds_of_samples_differ_and_do_not_depend_on_n() -> None:
    request = SampleRequest((1, 2), 7)
    assert len(set(sample_seeds(request, 64))) == 64
    assert sample_seeds(request, 64)[:8] == sample_seeds(request, 8)
    assert not set(sample_seeds(request, 64)) & set(sample_seeds(SampleRequest((1, 2), 8), 64))


def test_room_is_what_the_context_leaves() -> None:
    assert room_for((1,) * 10, max_tokens=5, context=20) == 5
    assert room_for((1,) * 18, max_tokens=5, context=20) == 2
    with pytest.raises(UserError, match="leaves no room"):
        room_for((1,) * 20, max_tokens=5, context=20)
    with pytest.raises(UserError, match="cannot sample from a prompt without tokens"):
        room_for((), max_tokens=5, context=20)


def test_text_ends_before_the_earliest_stop_string(chat: Chat) -> None:
    ids = chat.response_ids([Message("user", "x")], "one two three", finished=False)
    response = make_response(chat, (), ids, [-1.0] * len(ids), ("three", "two"))
    assert (response.text, chat.decode(response.token_ids), response.finish_reason) == ("one ", "one two", "stop")
    assert len(response.logprobs) == len(response.token_ids) < len(ids)


@pytest.mark.parametrize(
    ("stored", "accelerator", "expected"),
    [
        ('{"dtype": "float32"}', False, "float32"),
        ('{"dtype": "float32"}', True, "bfloat16"),
        ('{"torch_dtype": "float16"}', True, "float16"),
        ('{"dtype": "bfloat16"}', False, "bfloat16"),
        ("{}", False, "float32"),
    ],
)
def test_auto_precision(tmp_path: Path, stored: str, accelerator: bool, expected: str) -> None:
    (tmp_path / "config.json").write_text(stored)
    assert engine_dtype("auto", str(tmp_path), accelerator) == expected
    assert engine_dtype("float16", str(tmp_path), accelerator) == "float16"
