"""Suites of a run on a tiny model, by the real engine of transformers, against the harness's own class for it."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.preflight.labellers import check_suites
from flows.report.gather import round_facts
from flows.report.markdown import round_page
from flows.report.terminal import print_table, read_rounds
from flows.report.write import write_report
from flows.stages.context import Context
from flows.stages.data import text_preferences
from flows.stages.measures.changes import suite_changes
from flows.stages.run import run_stage
from pipeline.config import Gate
from pipeline.config.files import dump_config, load_config
from pipeline.errors import UserError
from pipeline.evaluation.suites.result import SuiteResult
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from tests.support.judge_server import JudgeServer, judge_server
from tests.support.sampling_here import SamplesHere
from tests.support.suite_files import IFEVAL, write_rows, write_suite_job, write_tasks
from tests.support.tiny_model import CONTEXT

TASKS = ("tiny_choice", "tiny_words", "tiny_rolling", "tiny_cloze")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    write_suite_job(folder)
    # Half of the rows ask for what the model says.
    said = harness(folder, write_tasks(folder / "asked"), "tiny_words")["samples"]["tiny_words"]
    write_tasks(folder / "tasks", {row["doc_id"]: row["filtered_resps"][0] for row in said if row["doc_id"] % 2})
    return folder


def harness(folder: Path, tasks: Path, *names: str) -> dict[str, Any]:
    """What lm-evaluation-harness measures by itself."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=4, max_length=CONTEXT - 2)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found: dict[str, Any] = simple_evaluate(lm, tasks=[*names], task_manager=manager, bootstrap_iters=0)
    return found


def context_of(job: Path, root: Path, *suites: dict[str, Any]) -> Context:
    config = load_config([job / "run.yaml"], [f"evaluation.suites={json.dumps(suites)}"])
    root.mkdir(parents=True, exist_ok=True)
    context = Context(RunFolder(root), config)
    write_text(context.run.config_file, dump_config(config))
    return context


def run(context: Context, workers: Any, *names: str, round_: int = 0) -> None:
    for name in names:
        run_stage(context, round_, name, workers)


def metrics_of(context: Context, round_: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((context.run.stage(round_, "suites").folder / "metrics.json").read_text())
    return found


def tasks_suite(job: Path) -> dict[str, Any]:
    return {"kind": "lm_eval", "tasks": [*TASKS], "include": str(job / "tasks")}


@pytest.fixture(scope="module")
def measured(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Round 0 with two suites, evaluated."""
    ifeval = {"kind": "ifeval", "file": str(job / "ifeval.jsonl")}
    context = context_of(job, tmp_path_factory.mktemp("runs") / "run", ifeval, tasks_suite(job))
    workers = SamplesHere(context.config)
    run(context, workers, "data", "policy", "evaluation_samples", "suite_samples", "suites", "evaluation")
    return context


def test_tasks_have_the_harness_s_own_numbers(job: Path, measured: Context) -> None:
    theirs, ours = harness(job, job / "tasks", *TASKS)["results"], metrics_of(measured)
    for task, metric in (("choice", "acc"), ("choice", "acc_norm"), ("words", "exact_match"), ("cloze", "acc")):
        assert ours[f"suite_lm_eval_tiny_{task}_{metric}"] == theirs[f"tiny_{task}"][f"{metric},none"], (task, metric)
    assert 0 < ours["suite_lm_eval_tiny_choice_acc"] < 1 and ours["suite_lm_eval_tiny_words_exact_match"] == 0.5
    expected = theirs["tiny_rolling"]["word_perplexity,none"]
    assert ours["suite_lm_eval_tiny_rolling_word_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_instructions_are_checked_on_what_the_policy_answered(measured: Context) -> None:
    from lm_eval.tasks.ifeval.utils import process_results

    groups = read_groups(measured.run.stage(0, "suite_samples").folder / "ifeval")
    told = [process_results(row, [g.responses[0].text]) for row, g in zip(IFEVAL, groups, strict=True)]
    found = metrics_of(measured)
    assert found["suite_ifeval"] == sum(one["prompt_level_strict_acc"] for one in told) / len(told)
    assert found["suite_ifeval_ci"][0] <= found["suite_ifeval"] <= found["suite_ifeval_ci"][1]
    assert found["suites"] == {"ifeval": "prompt_strict", "lm_eval": "tiny_choice_acc"}


def test_suites_are_shown_wherever_rounds_are(measured: Context, capsys: pytest.CaptureFixture[str]) -> None:
    facts = round_facts(measured.run, measured.config, 0)
    value = f"{facts.metrics['suite_ifeval']:.1%}"
    print_table(measured.run.root, read_rounds(measured.run.root))
    assert "ifeval" in (shown := capsys.readouterr().out) and value in shown
    assert f"| ifeval\\: prompt strict | {value} (" in round_page("run", 1, facts)
    page = write_report(measured.run, measured.config).read_text()
    assert "<h3>Standard evaluations</h3>" in page and "ifeval: prompt strict" in page and f"{value} (" in page


class Killed(BaseException):
    """What ends a run without a word."""


class Dying(SamplesHere):
    """Ends the run after some calls of the engine."""

    def __init__(self, config: Any, calls: int) -> None:
        super().__init__(config)
        self._left = calls

    def ranked(self, *given: Any) -> list[list[tuple[float, bool]]]:
        self._count()
        return super().ranked(*given)

    def sample(self, *given: Any) -> Iterator[Any]:
        for answer in super().sample(*given):
            self._count()
            yield answer

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed


def test_a_killed_suite_of_tasks_asks_only_for_the_rest(job: Path, measured: Context, tmp_path: Path) -> None:
    context = context_of(job, tmp_path / "run", tasks_suite(job))
    dying = Dying(context.config, 2)
    run(context, dying, "data", "policy")
    with pytest.raises(Killed):
        run(context, dying, "suite_samples")
    kept = context.run.stage(0, "suite_samples").partial / "lm_eval" / "answers.jsonl"
    known = len(kept.read_text().splitlines())
    with kept.open("a") as lines:
        lines.write('["a line that a kill to')
    workers = SamplesHere(context.config)
    run(context, workers, "suite_samples", "suites")
    whole = SamplesHere(measured.config)
    other = context_of(job, tmp_path / "other", tasks_suite(job))
    run(other, whole, "data", "policy", "suite_samples")
    assert 0 < known == whole.scored + whole.sampled - workers.scored - workers.sampled
    ours, theirs = metrics_of(context), metrics_of(measured)
    assert ours["suite_lm_eval"] == theirs["suite_lm_eval"]


def test_prompts_of_a_suite_that_are_trained_on_are_named(job: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "leaky.jsonl")
    context = context_of(job, tmp_path / "run", {"kind": "ifeval", "file": file})
    workers = SamplesHere(context.config)
    run(context, workers, "data", "policy")
    leaked = next(text_preferences(context)).prompt.messages[0].content.upper().replace(" ", "  ")
    write_rows(Path(file), [IFEVAL[1], {**IFEVAL[0], "prompt": leaked}])
    trained = rf"ifeval: 1 of 2 prompts are training prompts too \(rows 2; the first: '{leaked}'\)"
    with pytest.raises(UserError, match=trained):
        run(context, workers, "suite_samples")
    assert workers.sampled == 0
    warned = {"kind": "ifeval", "file": file, "on_leak": "warn"}
    context = context_of(job, tmp_path / "warned", warned)
    run(context, workers, "data", "policy", "suite_samples", "suites")
    assert metrics_of(context)["suite_ifeval_leaked"] == 1


def longer(question: str) -> str:
    """Prefers the longer response, strongly if it is twice as long; grades, or a verdict in words."""
    parts = re.findall(r"<<<RESPONSE [AB] \S+\n(.*?)\n\S+ END OF RESPONSE", question, re.DOTALL)
    first, second = map(len, parts)
    if "[[A>>B]]" not in question:
        return f"Verdict: {'A' if first > second else 'B'}"
    mark = ">>" if max(first, second) > 2 * min(first, second) else ">"
    return f"[[A{mark}B]]" if first > second else f"[[B{mark}A]]"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer) as made:
        yield made


def judge(server: JudgeServer, **more: Any) -> dict[str, Any]:
    price = {"price": {"input": 1.0, "output": 1.0}, "budget": {"cost": 1.0}}
    return {"kind": "judge", "server": {"base_url": server.url, "model": "m", "concurrency": 1, **price}, **more}


def judged_suites(folder: Path, server: JudgeServer) -> list[dict[str, Any]]:
    questions = [f"say {n}" for n in range(8)]
    alpaca = [
        {
            "instruction": q,
            "output": "y" * (4 + 900 * (n % 2)),
            "generator": "base",
            "dataset": ("koala", "vicuna")[n % 2],
        }
        for n, q in enumerate(questions)
    ]
    arena = [{"uid": f"u{n}", "prompt": f"tell {n}", "category": "c", "cluster": f"k {n % 2}"} for n in range(6)]
    answers = [
        {
            "uid": row["uid"],
            "messages": [{"role": "user"}, {"role": "assistant", "content": {"answer": "y" * (1 + 999 * (n % 2))}}],
        }
        for n, row in enumerate(arena)
    ]
    pairs = [
        {
            "prompt": f"p{n}",
            "chosen": "barn " * (1 + n % 3),
            "rejected": "mat " * 2,
            "subset": ("hep-go", "hep-cpp")[n % 2],
        }
        for n in range(8)
    ]
    files = {
        name: str(write_rows(folder / f"{name}.jsonl", rows))
        for name, rows in (("alpaca", alpaca), ("arena", arena), ("answers", answers), ("pairs", pairs))
    }
    return [
        {"kind": "alpaca_eval", "file": files["alpaca"], "judge": judge(server)},
        {
            "kind": "arena_hard", "file": files["arena"], "baseline": files["answers"],
            "judge": judge(server, verdict="graded"), "category": "cluster",
        },
        {"kind": "reward_bench", "file": files["pairs"], "judge": {"kind": "length", "target_words": 9}},
    ]  # fmt: skip


def test_a_judge_is_asked_nothing_twice_after_a_kill(job: Path, server: JudgeServer, tmp_path: Path) -> None:
    context = context_of(job, tmp_path / "runs" / "run", *judged_suites(tmp_path, server))
    workers = SamplesHere(context.config)
    run(context, workers, "data", "policy", "suite_samples")
    server.always = "402"
    server.faults = [""] * 5
    with pytest.raises(UserError, match=r"evaluation\.suites\.0\.judge"):
        run(context, workers, "suites")
    answered = 5
    server.always, asked = "", len(server.seen)
    run(context, workers, "suites")
    # Eight duels and six, in both orders.
    assert len(server.seen) - asked == 2 * 8 + 2 * 6 - answered
    found = metrics_of(context)
    folder = context.run.stage(0, "suite_samples").folder / "alpaca_eval"
    texts = [group.responses[0].text for group in read_groups(folder)]
    won = [len(text) > 4 + 900 * (n % 2) for n, text in enumerate(texts)]
    assert found["suite_alpaca_eval_win_rate"] == sum(won) / 8 and 0 < sum(won) < 8
    by_set = [found[f"suite_alpaca_eval_win_rate_of_{name}"] for name in ("koala", "vicuna")]
    assert by_set == [sum(won[::2]) / 4, sum(won[1::2]) / 4] and by_set[0] != by_set[1]
    # The baseline's answers to questions of odd numbers are the long ones.
    short, long = (found[f"suite_arena_hard_win_rate_of_k_{n}"] for n in (0, 1))
    assert 0 == long < short and found["suite_arena_hard_win_rate_of_k_0_ci"][0] < short
    assert 0 < found["suite_alpaca_eval_lc_win_rate_ci"][0] < found["suite_alpaca_eval"] < 1
    assert 0 < found["suite_arena_hard"] <= 0.5 and found["suites"]["arena_hard"] == "win_rate"
    # The nearer to nine words the better: three words of barn beat two of mat.
    assert found["suite_reward_bench_accuracy"] == 2 / 8
    assert found["suite_labelling"]["cost"] > 0


def test_a_category_that_no_row_has_is_refused(server: JudgeServer, job: Path, tmp_path: Path) -> None:
    suites = [{**suite, "category": "topic"} for suite in judged_suites(tmp_path, server)[:1]]
    said = (
        r"alpaca_eval: category: no row of .*alpaca\.jsonl has 'topic'; the first has dataset, generator, instruction"
    )
    with pytest.raises(UserError, match=said):
        check_suites(context_of(job, tmp_path / "run", *suites).config)


def test_a_judge_whose_budget_is_spent_gives_no_number(job: Path, server: JudgeServer, tmp_path: Path) -> None:
    suites = judged_suites(tmp_path, server)[:1]
    suites[0]["judge"]["server"]["budget"] = {"calls": 6}
    context = context_of(job, tmp_path / "runs" / "run", *suites)
    workers = SamplesHere(context.config)
    with pytest.raises(UserError, match=r"alpaca_eval: 3 of 8 questions got labels, below labelling.min_yield"):
        run(context, workers, "data", "policy", "suite_samples", "suites")
    assert len(server.seen) == 6


def test_a_change_is_measured_from_the_newest_round_that_has_the_suite(job: Path, tmp_path: Path) -> None:
    context = context_of(job, tmp_path / "run", {"kind": "ifeval", "file": str(job / "ifeval.jsonl"), "every": 2})
    for round_, share in ((0, 15), (2, 5)):
        folder = context.run.stage(round_, "suites").folder
        folder.mkdir(parents=True)
        items = {str(n): float(n < share) for n in range(20)}
        SuiteResult("ifeval", "prompt_strict", {"prompt_strict": share / 20}, items).write(folder / "ifeval.json")
    settings = Gate.model_validate({"suites": {"ifeval": {"min_change": -0.02}}})
    assert suite_changes(context, settings, 1, 0) == {}
    found = suite_changes(context, settings, 2, 1)["suite_ifeval_change"]
    assert found is not None and found.mean == -0.5 and found.high < -0.02
