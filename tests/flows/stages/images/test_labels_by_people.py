"""People as the labeller of a round of images: the run pauses with a page, and goes on with their votes."""

import json
from pathlib import Path

import pytest

from flows.loop.preparation import prepare_run
from flows.loop.rounds import start_run
from flows.stages.images.labels import compared_places, with_shares
from flows.workers.local import Workers
from pipeline.config.files import load_config
from pipeline.errors import Paused
from pipeline.storage.rows import read_groups
from pipeline.types import Group, Message, Prompt, Response
from tests.support.image_run import SMALL, ImageStages
from tests.support.places import ROOT


def group(*names: str) -> Group:
    responses = tuple(Response(name, (number,), (), "stop") for number, name in enumerate(names))
    return Group(Prompt((Message("user", "p"),)), (1,), responses)


def test_neighbours_are_compared_first_and_equal_images_are_not() -> None:
    assert compared_places(group("a", "b", "c"), 9) == [(0, 1), (1, 2), (0, 2)]
    assert compared_places(group("a", "a", "b"), 1) == [(1, 2)]
    assert compared_places(group("a", "a"), 3) == []


def test_votes_are_win_probabilities_and_their_means_scores() -> None:
    given = group("a", "b", "c")
    votes = [((0, 1), 0.75), ((1, 2), 1.0)]
    compared = [(pair, Group(given.prompt, (), (), (share, 1 - share))) for pair, share in votes]
    found = with_shares(given, compared)
    assert found.scores == (0.75, 0.625, 0.0)
    assert found.wins == ((0.5, 0.75, None), (0.25, 0.5, 1.0), (None, 0.0, 0.5))


def test_a_round_pauses_for_people_and_goes_on_with_their_votes(tmp_path: Path) -> None:
    people = ("scorer.kind=people", "gate=null", "prompts_per_round=6", "sampling.n=2")
    config = load_config([ROOT / "configs" / "images.yaml"], [*SMALL, *people])
    run = prepare_run(config, tmp_path / "run")
    with Workers(run.root, config) as workers:
        stage = ImageStages(run, workers, None)
        start_run(stage, config)
        stage("samples", 1)
        with pytest.raises(Paused, match="have answered 0 of 6 questions"):
            stage("labels", 1)
        place = run.root / "questions" / "round_001"
        assert (place / "questions.html").read_text().count("<img ") == 12
        asked = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
        answers = [{"id": row["id"], "answer": "a"} for row in asked]
        (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        stage("labels", 1)
    won = {row["a"] for row in asked}
    labelled = [*read_groups(run.stage(1, "labels").folder)]
    assert len(labelled) == 6
    for found in labelled:
        assert [score == 1.0 for score in found.scores] == [response.text in won for response in found.responses]
    assert run.stage(0, "evaluation").require().metrics["reward"] is None
