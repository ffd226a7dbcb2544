"""Examples in a file: what comes out is what went in, and training cannot tell."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Optimisation
from pipeline.errors import RunError
from pipeline.training.batches.example_table import BATCH_ROWS, ExampleTable, write_examples
from pipeline.training.batches.examples import Continuation, Example, check_examples
from pipeline.training.train import StepReport
from tests.support.tiny_training import (
    dpo,
    pairs_with_reference,
    random_groups,
    random_pairs,
    random_texts,
    random_unpaired,
    tiny_llama,
    trained,
)

SETTINGS = Optimisation(batch_size=8, learning_rate=1e-2, epochs=2, checkpoint_every=3)


def table_of(file: Path, examples: list[Example]) -> ExampleTable:
    assert write_examples(file, iter(examples)) == len(examples)
    return ExampleTable(file)


def every_kind() -> list[Example]:
    full = Continuation((3, 4), ((-0.5, -1.5), (-2.0, 0.0)), (0.25, 4.0), prior=-3.1, reward=0.0, win_probability=0.1)
    one = Example("all", (1,), "pair", (full, full), 0.7, dispersion=0.3, calibration=full, mismatched=Continuation(()))
    return [one, *random_pairs(20), *random_groups(5, sizes=(4, 2)), *random_unpaired(3), *random_texts(2)]


@pytest.mark.parametrize("count", [0, 1, BATCH_ROWS, BATCH_ROWS + 1, 31])
def test_examples_come_out_as_they_went_in_at_any_place(tmp_path: Path, count: int) -> None:
    examples = every_kind()[:count]
    table = table_of(tmp_path / "examples.arrow", examples)
    assert len(table) == count and [*table] == examples
    order = random.Random(0).sample(range(count), count)
    assert [table[i] for i in order] == [examples[i] for i in order]
    assert table[1:20:3] == examples[1:20:3]
    with pytest.raises(IndexError):
        table[count]
    if count:
        assert table[-1] == examples[-1]


def test_a_file_that_is_not_whole_is_none(tmp_path: Path) -> None:
    file = tmp_path / "examples.arrow"

    def broken() -> Iterator[Example]:
        yield from random_pairs(20)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_examples(file, broken())
    assert not file.exists()
    write_examples(file, random_pairs(20))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(RunError, match=r"examples\.arrow: cannot be read as examples"):
        ExampleTable(file)


def test_training_from_a_file_is_training_from_a_list_and_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    start = tiny_llama()
    examples = pairs_with_reference(start, 37)
    table = table_of(tmp_path / "examples.arrow", examples)
    whole = trained(tiny_llama(), examples, dpo(), SETTINGS, seed=3)
    streamed, resumed = tiny_llama(), tiny_llama()
    trained(streamed, table, dpo(), SETTINGS, seed=3)

    class KilledError(Exception):
        pass

    def kill(report: StepReport) -> None:
        if report.step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        trained(tiny_llama(), table, dpo(), SETTINGS, seed=3, checkpoints=tmp_path / "c", on_step=kill)
    again = table_of(tmp_path / "again.arrow", examples)
    result = trained(resumed, again, dpo(), SETTINGS, seed=3, checkpoints=tmp_path / "c")
    assert [step.loss for step in result.history] == [step.loss for step in whole.history]
    ours, theirs = streamed.state_dict(), resumed.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert not ours["lm_head.weight"].equal(start.state_dict()["lm_head.weight"])


def test_a_survey_tells_other_examples_apart_and_holds_four_bytes_a_length(tmp_path: Path) -> None:
    examples = pairs_with_reference(tiny_llama(), 20)
    survey = check_examples(table_of(tmp_path / "examples.arrow", examples), dpo().name, dpo().needs)
    assert survey == check_examples(examples, dpo().name, dpo().needs)
    assert [*survey.tokens] == [len(e.prompt_ids) + e.response_tokens for e in examples]
    assert [*survey.lengths] == [example.length for example in examples] and memoryview(survey.lengths).nbytes == 80  # type: ignore[arg-type]
    renamed = [*examples[:-1], replace(examples[-1], id="other")]
    swapped = [examples[1], examples[0], *examples[2:]]
    assert len({check_examples(these, dpo().name, dpo().needs).digest for these in (examples, renamed, swapped)}) == 3
