"""Models are gone with what holds them, without the cycle collector: a card has room for the next stage at once."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pipeline.config import ClassifierScorer
from pipeline.models.policy import load_for_scoring
from pipeline.training.reference import response_logps
from pipeline.types import Group, Message, Prompt, Response
from reward_models.local.classifier import ClassifierReward
from tests.support.tiny_model import save_tiny_model


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def scored(path: Path, packing: bool) -> Any:
    reward = ClassifierReward(ClassifierScorer(path=str(path), packing=packing))
    responses = tuple(Response(text, (1, 2), (-1.0, -1.0), "stop") for text in ("ran home", "sat"))
    (found,) = reward.score([Group(Prompt((Message("user", "the dog"),)), (1, 2), responses)])
    assert len(set(found)) == 2 and None not in found
    return reward


def held_by(make: Callable[[], Any], model: Callable[[Any], Any]) -> list[weakref.ref[Any]]:
    """References to the model in what ``make`` returns, and to one of its weights; the object itself is let go."""
    holder = make()
    return [weakref.ref(model(holder)), weakref.ref(model(holder).model.layers[0].mlp.up_proj.weight)]


@pytest.mark.parametrize("packing", [True, False])
def test_a_labelling_model_goes_with_its_labeller(tmp_path: Path, no_collector: None, packing: bool) -> None:
    place = save_tiny_model(tmp_path / "model")
    shape = LlamaConfig.from_pretrained(place)
    shape.num_labels, shape.pad_token_id = 1, 0
    torch.manual_seed(0)
    LlamaForSequenceClassification(shape).save_pretrained(place)
    gc.collect()
    left = held_by(lambda: scored(place, packing), lambda reward: reward._model)
    assert [one() for one in left] == [None, None]


def test_a_reference_goes_after_its_pass(tmp_path: Path, no_collector: None) -> None:
    place = save_tiny_model(tmp_path / "model")

    def used() -> Any:
        model = load_for_scoring(str(place))
        response_logps(model, [((1, 2), (3, 4)), ((1, 2), (5,))])
        return model

    assert [one() for one in held_by(used, lambda model: model)] == [None, None]
