"""Rounds with a discriminator: what is bought, who labels the rest, the gate, and people who answer."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.check import check_run
from flows.stages.context import Context
from flows.stages.labels.gold import handover
from flows.stages.run import run_stage
from pipeline.errors import Paused, RunError, UserError
from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.types import Group, Pair
from tests.support.judge_server import judge_server, longer_wins
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, supply, train

# Two held-out comparisons cannot tell a model from a coin.
GATE = "discriminator.gate={held_out: 0.25, comparisons: 1, error: 1}"
SMALL = ("prompts_per_round=12", "discriminator.budget=8", GATE)
LEARNS = (*SMALL, "discriminator.training={learning_rate: 3.0e-3, epochs: 12, batch_size: 4, warmup: 0}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def started(job: Path, root: Path, *settings: str) -> Context:
    context = open_context(job, root, "iterative", *settings)
    check_run(context.config)
    begin(context)
    return context


def metrics(context: Context, round_: int, name: str) -> dict[str, Any]:
    return dict(context.run.stage(round_, name).require().metrics)


def groups(context: Context, round_: int, name: str) -> list[Group]:
    return [*read_groups(context.run.stage(round_, name).folder)]


def test_gold_teaches_a_discriminator_that_labels_the_rest(job: Path, tmp_path: Path) -> None:
    context = started(job, tmp_path / "run", *LEARNS)
    train(context, 1)
    gold = groups(context, 1, "gold")
    assert len(gold) == 8 and all(len(group.responses) == 2 and len(group.scores) == 2 for group in gold)
    first = metrics(context, 1, "discriminator")
    assert first["labels_with"] == "round_001/discriminator" and first["accuracy"] >= 0.6
    assert first["why_not"] is None and first["previous_accuracy"] is None
    labels = {group.prompt.id: group for group in groups(context, 1, "labels")}
    assert metrics(context, 1, "labels")["gold"] == 8 and metrics(context, 1, "labels")["silver"] == 4
    for group in gold:
        assert labels[group.prompt.id] == group, "where gold was bought, it is what is trained on"
    silver = [group for group in labels.values() if group.prompt.id not in {g.prompt.id for g in gold}]
    rights = [
        (group.responses[i].text.find("barn") >= 0) == (group.scores[i] > group.scores[j])  # type: ignore[operator]
        for group in silver
        for i in range(3)
        for j in range(3)
        if ("barn" in group.responses[i].text) != ("barn" in group.responses[j].text)
    ]
    assert sum(rights) / len(rights) > 0.8, "it has learnt what gold pays for"
    train(context, 2)
    second = metrics(context, 2, "discriminator")
    assert second["bought"] == 16 and second["fresh_accuracy"] >= 0.6 and second["previous_accuracy"] is not None


def test_gold_of_a_judge_is_paid_for_once_and_says_what_it_cost(job: Path, tmp_path: Path) -> None:
    with judge_server(longer_wins) as server:
        endpoint = f"base_url: '{server.url}', model: j, attempts: 1, concurrency: 1, price: {{input: 1, output: 2}}"
        settings = (
            *SMALL[:2],
            "discriminator.silver=none",
            f"scorer={{kind: judge, server: {{{endpoint}}}}}",
            "labelling.min_yield=0.8",
        )
        context = started(job, tmp_path / "runs" / "one", *settings)
        server.faults = [""] * 10 + ["500"] * 6
        workers: Any = InventedResponses(context.policy_path(0))
        run_stage(context, 1, "samples", workers)
        with pytest.raises(RunError, match=r"10 of 16 responses got a score.*server_error 6"):
            run_stage(context, 1, "gold")
        run_stage(context, 1, "gold")
        assert len(server.seen) == 16 + 6, "what was answered is not asked again"
    found = metrics(context, 1, "gold")
    assert (found["comparisons"], found["missing_labels"], found["calls"], found["failed_calls"]) == (8, 0, 22, 6)
    assert found["prompt_tokens"] == 1600 and found["cost"] == pytest.approx(16 * 120e-6)
    for group in groups(context, 1, "gold"):
        first, second = (len(response.text) for response in group.responses)
        assert group.scores == ((0.5, 0.5) if first == second else (float(first > second), float(first < second)))


def test_a_version_that_does_not_pass_is_rolled_back(job: Path, tmp_path: Path) -> None:
    context = started(job, tmp_path / "run", *LEARNS, "rounds=2")
    train(context, 1)
    strict = context.config.model_copy(deep=True)
    object.__setattr__(strict.discriminator.gate, "comparisons", 1000)  # type: ignore[union-attr]
    later = Context(context.run, strict)
    from flows.stages.labels.discriminator import discriminator

    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(context, 2, "samples", workers)
    run_stage(context, 2, "gold")
    (tmp_path / "second").mkdir()
    found = discriminator(later, 2, tmp_path / "second").metrics
    assert found["labels_with"] == "round_001/discriminator"
    assert "held-out comparisons cannot tell; at least 1000" in str(found["why_not"])


def test_while_no_version_has_passed_rounds_train_on_gold_alone(job: Path, tmp_path: Path) -> None:
    # One untrained step at a rate of nothing ranks by chance; the gate asks for all.
    barely = "discriminator.training={learning_rate: 1.0e-12, max_steps: 1}"
    gate = "discriminator.gate={held_out: 0.5, comparisons: 2, accuracy: 1.0}"
    context = started(job, tmp_path / "run", "prompts_per_round=12", "discriminator.budget=10", gate, barely, "seed=3")
    train(context, 1)
    found = metrics(context, 1, "discriminator")
    assert found["labels_with"] is None and "at least 100%" in found["why_not"]
    labels = metrics(context, 1, "labels")
    expected = {"gold": 10, "silver": 0, "silver_by": None, "reward": None}
    assert {name: labels[name] for name in expected} == expected
    assert len([*read_preference_rows(context.run.stage(1, "pairs").folder)]) <= 10


@pytest.mark.parametrize(
    ("silver", "second"),
    [("static", {"gold": 0, "silver": 12}), ("self", {"gold": 8, "silver": 4}), ("none", {"gold": 8, "silver": 0})],
)
def test_controls(job: Path, tmp_path: Path, silver: str, second: dict[str, int]) -> None:
    settings = LEARNS if silver == "static" else SMALL[:2]
    context = started(job, tmp_path / "run", *settings, f"discriminator.silver={silver}")
    train(context, 1)
    train(context, 2)
    labels = metrics(context, 2, "labels")
    assert {name: labels[name] for name in ("gold", "silver")} == second
    if silver == "static":
        # The gold of both rounds, but no more than one comparison a prompt.
        assert len(groups(context, 1, "gold")) == 12
        assert not context.run.stage(2, "gold").folder.exists()
        assert not context.run.stage(2, "discriminator").folder.exists()
    if silver == "self":
        # In round 1 policy and start are one model: every implicit reward is 0, and silver are ties.
        assert metrics(context, 1, "pairs")["dropped"]["tie"] >= 4
        scores = [group.scores for group in groups(context, 2, "labels") if len(group.responses) == 3]
        assert any(abs(score or 0.0) > 1e-4 for row in scores for score in row)


@pytest.mark.parametrize("rule", ["uncertain", pytest.param("disagreement", marks=pytest.mark.whole)])
def test_what_the_discriminator_is_unsure_of_is_bought(job: Path, tmp_path: Path, rule: str) -> None:
    from flows.stages.labels.discriminator import member_margins
    from reward_models.training.gold import comparison_of

    chosen = ("discriminator.members=2", f"discriminator.select={rule}")
    context = started(job, tmp_path / "run", *LEARNS, *chosen)
    train(context, 1)
    supply(context, 2)
    bought = {group.prompt.id for group in groups(context, 2, "gold")}
    candidates = [
        c for g in groups(context, 2, "samples") if (c := comparison_of(g, context.config.seed, 2)) is not None
    ]
    margins = member_margins(context, 1, candidates)
    assert margins is not None and len(margins[0]) == 2 and margins[0][0] != margins[0][1]

    def rank(pair: tuple[float, ...]) -> float:
        return abs(sum(pair)) if rule == "uncertain" else -abs(pair[0] - pair[1])

    order = sorted(range(len(candidates)), key=lambda index: rank(margins[index]))
    assert bought == {candidates[index].prompt.id for index in order[:8]}


def test_people_answer_questions_in_a_file(job: Path, tmp_path: Path) -> None:
    settings = (
        "discriminator={gold: people, silver: none, budget: 6, poll: 0.05, wait: 60}",
        "prompts_per_round=8",
        "scorer=null",
    )
    context = started(job, tmp_path / "run", *settings)
    place = handover(context, 1)
    notes: list[str] = []

    def report(done: int, total: int, note: str) -> None:
        notes.append(f"{done}/{total} {note}")

    def wait(ready: Any) -> None:
        until = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < until
            time.sleep(0.02)

    run_stage(context, 1, "samples", InventedResponses(context.policy_path(0)))  # type: ignore[arg-type]
    stage = threading.Thread(
        target=run_stage, args=(Context(context.run, context.config, report), 1, "gold"), daemon=True
    )
    stage.start()
    wait(lambda: notes)
    questions = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    assert len(questions) == 6 and set(questions[0]) == {"id", "prompt", "a", "b"}
    assert (place / "questions.html").read_text().count("<article>") == 6
    (place / "answers.jsonl").write_text('{"id": "' + questions[0]["id"] + '", "answer": "yes"}\n')
    wait(lambda: "row 1: answer: 'yes'; must be one of a, b, tie, skip" in notes[-1])
    better = ["a" if "barn" in row["a"] else "b" if "barn" in row["b"] else "skip" for row in questions]
    rows = [
        json.dumps({"id": row["id"], "answer": answer}) + "\n" for row, answer in zip(questions, better, strict=True)
    ]
    (place / "answers.jsonl").write_text("".join(rows))
    stage.join(timeout=60)
    assert not stage.is_alive()
    run_stage(context, 1, "labels")
    run_stage(context, 1, "pairs")
    pairs = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    decided = sum(("barn" in row["a"]) != ("barn" in row["b"]) for row in questions)
    assert pairs and all("barn" in pair.chosen.text for pair in pairs) and len(pairs) >= decided


def test_a_run_that_waits_for_people_pauses_and_goes_on(job: Path, tmp_path: Path) -> None:
    settings = ("discriminator={gold: people, silver: none, budget: 6}", "prompts_per_round=8", "scorer=null")
    context = started(job, tmp_path / "run", *settings)
    run_stage(context, 1, "samples", InventedResponses(context.policy_path(0)))  # type: ignore[arg-type]
    place = handover(context, 1)
    with pytest.raises(Paused, match=r"answered 0 of 6 questions\n  questions: .*questions.html"):
        run_stage(context, 1, "gold")
    questions = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    rows = [json.dumps({"id": row["id"], "answer": "a"}) + "\n" for row in questions]
    (place / "answers.jsonl").write_text("".join(rows[:4]) + "a\n")
    with pytest.raises(Paused, match=r"answered 4 of 6 questions\nrows .* that are not answers:\n  row 5: not JSON"):
        run_stage(context, 1, "gold")
    (place / "answers.jsonl").write_text("".join(rows))
    run_stage(context, 1, "gold")
    assert [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()] == questions
    assert all(set(group.scores) == {0.0, 1.0} for group in groups(context, 1, "gold"))


@pytest.mark.parametrize(
    ("mode", "settings", "said"),
    [
        ("offline", ["discriminator={}"], "offline mode labels nothing"),
        ("iterative", ["discriminator={}", "scorer=null"], "needs a scorer"),
        ("iterative", ["discriminator.budget=8"], "gate.comparisons: 16, but of 8"),
        ("iterative", ["discriminator.start=/no/such/model"], "discriminator.start"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    job: Path, tmp_path: Path, mode: str, settings: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_run(open_context(job, tmp_path / "run", mode, *settings).config)
