"""Reward models in engines of their own: the bits of one process, whatever happens to an engine."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForSequenceClassification

from flows.stages.run import run_stage
from flows.workers.pool.label_engine import EngineTimes, LabelPool, label_seats
from flows.workers.pool.seating import Seat
from pipeline.config import ClassifierScorer, PairwiseScorer, RunConfig
from pipeline.errors import UserError
from pipeline.storage.rows import read_groups
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.parts import LocalModel
from reward_models.build import loaded
from reward_models.local.silver import ImplicitReward, ImplicitSettings, Members
from tests.support.tiny_model import save_tiny_model, tiny_tokenizer
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

KINDS = ("classifier", "pairwise", "members", "implicit")
TIMES = EngineTimes(200, 200)
WORDS = ("dog", "cat", "barn", "mat")


def group(number: int, count: int = 3) -> Group:
    texts = [" ".join(WORDS[(number + k + i) % 4] for i in range(1 + (7 * number + k) % 9)) for k in range(count)]
    ids = [tuple(3 + (number + k + i) % 20 for i in range(1 + (5 * number + k) % 7)) for k in range(count)]
    responses = tuple(Response(text, i, (-1.0,) * len(i), "stop") for text, i in zip(texts, ids, strict=True))
    return Group(Prompt((Message("user", f"the {WORDS[number % 4]} {number}"),)), (1, 2, 3 + number % 9), responses)


GROUPS = [group(number) for number in range(24)]
COMPARED = [group(number, 2) for number in range(24)]


def asked(kind: str) -> list[Group]:
    return COMPARED if kind == "pairwise" else GROUPS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    """One of each kind, with forward passes so short that there are many parts."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_tiny_model(folder / f"policy_{seed}", seed=seed)
        tokenizer = tiny_tokenizer()
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(seed)
        tokenizer.save_pretrained(folder / f"reward_{seed}")
        LlamaForSequenceClassification(shape).save_pretrained(folder / f"reward_{seed}")
    reward = str(folder / "reward_0")
    implicit = ImplicitSettings(str(folder / "policy_0"), str(folder / "policy_1"), 0.1, "float32", False)
    return {
        "classifier": LocalModel("classifier", ClassifierScorer(path=reward, batch_tokens=90).model_dump(mode="json")),
        "pairwise": LocalModel("pairwise", PairwiseScorer(path=reward, batch_size=5).model_dump(mode="json")),
        "members": LocalModel("members", {"folders": [reward, str(folder / "reward_1")]}),
        "implicit": LocalModel("implicit", implicit.plain),
    }


def alone(model: LocalModel, groups: list[Group]) -> list[float | None]:
    """All values, part by part in this process."""
    parts = loaded(model)
    found: list[float | None] = [None] * model.places(groups)
    for number in range(parts.start(groups)):
        for place, value in parts.part(number):
            found[place] = value
    return found


def pool(model: LocalModel, count: int, folder: Path, times: EngineTimes = TIMES) -> LabelPool:
    cores = sorted(os.sched_getaffinity(0))
    seats = [Seat(f"labeller {n}", (), (cores[n % len(cores)],), alone=False) for n in range(count)]
    return LabelPool(model, folder / "labeller.log", seats, {}, times)


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_three_engines_give_the_bits_of_one_process(
    models: dict[str, LocalModel], tmp_path: Path, kind: str
) -> None:
    expected = alone(models[kind], asked(kind))
    assert None not in expected and len({*expected}) > len(expected) / 4
    for count in (1, 2, 3):
        with pool(models[kind], count, tmp_path / str(count)) as engines:
            assert engines.values(asked(kind)) == expected
            assert engines.values(asked(kind)[:7]) == alone(models[kind], asked(kind)[:7])


def test_an_engine_that_is_killed_or_stops_is_replaced_and_the_bits_stay(
    models: dict[str, LocalModel], tmp_path: Path
) -> None:
    model, told = models["classifier"], list[int]()
    with pool(model, 2, tmp_path, EngineTimes(200, 8)) as engines:

        def hurt(place: int, value: float | None) -> None:
            told.append(place)
            pid = engines.engines[0].pid
            if len(told) in (3, 10) and pid is not None:
                os.kill(pid, signal.SIGKILL if len(told) == 3 else signal.SIGSTOP)

        assert engines.values(GROUPS, hurt) == alone(model, GROUPS)
        assert sorted(told) == [*range(3 * len(GROUPS))]
        assert engines.facts["truncated_conversations"] == 0


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    absent = LocalModel("classifier", ClassifierScorer(path=str(tmp_path / "none")).model_dump(mode="json"))
    with pytest.raises(UserError, match=r"scorer.path: .*none"):
        pool(absent, 1, tmp_path)


@pytest.mark.whole
def test_the_runs_own_models_score_alike_in_engines(models: dict[str, LocalModel], tmp_path: Path) -> None:
    opened = list[LabelPool]()

    def open_pool(model: LocalModel) -> LabelPool:
        opened.append(pool(model, 1, tmp_path))
        return opened[-1]

    implicit = ImplicitSettings.of(models["implicit"].settings)
    ours = ImplicitReward(implicit, open_pool).score(GROUPS[:5])
    opened[-1].close()
    assert ours == ImplicitReward(implicit).score(GROUPS[:5])
    folders: Any = models["members"].settings["folders"]
    both = Members([Path(one) for one in folders], engines=open_pool)
    theirs = Members([Path(one) for one in folders])
    found = both.score(GROUPS[:5]), both.margins(COMPARED[:5])
    opened[-1].close()
    assert found == (theirs.score(GROUPS[:5]), theirs.margins(COMPARED[:5]))


def test_more_engines_than_cards_or_cores_are_refused() -> None:
    job = {"name": "t", "mode": "offline", "policy": {"path": "p"}, "pairs": {"path": "q"}}

    def seats(engines: Any, rest: Seat) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        config = RunConfig.model_validate({**job, "labelling": {"engines": engines}})
        return [(seat.name, seat.cards, seat.cores) for seat in label_seats(config, rest)]

    cards, cores = Seat("trainer", ("4", "6")), Seat("trainer", (), (0, 1, 2))
    assert seats("auto", cards) == [("labeller 0", ("4",), ()), ("labeller 1", ("6",), ())]
    assert seats("auto", cores) == [("labeller", (), (0, 1, 2))]
    assert seats(2, cores) == [("labeller 0", (), (0, 1)), ("labeller 1", (), (2,))]
    with pytest.raises(UserError, match=r"labelling.engines: 3 engines .* cards 4,6; allowed: 1 to 2, or"):
        seats(3, cards)
    with pytest.raises(ValidationError, match=r"labelling.engines"):
        seats(0, cards)


@pytest.mark.whole
def test_a_round_is_labelled_by_several_engines_as_by_one(models: dict[str, LocalModel], tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    scorer = f"scorer={{kind: classifier, path: {models['classifier'].settings['path']}, batch_tokens: 90}}"
    found = []
    for engines in (1, 2):
        root = tmp_path / str(engines) / "run"
        context = open_context(job, root, "iterative", scorer, f"labelling.engines={engines}", "prompts_per_round=8")
        begin(context)
        workers: Any = InventedResponses(job / "model")
        run_stage(context, 1, "samples", workers)
        run_stage(context, 1, "labels")
        stage = context.run.stage(1, "labels")
        metrics = {**stage.require().metrics}
        for of_time in ("labels_per_second", "peak_memory"):
            metrics.pop(of_time)
        found.append(([*read_groups(stage.folder)], metrics))
        assert (root / "logs" / "labeller_1.log").is_file() == (engines == 2)
    assert found[0] == found[1] and found[0][1]["labels"] == 24
