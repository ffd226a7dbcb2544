"""A suite of lm-evaluation-harness tasks, measured with the run's sampler."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from flows.stages.context import Context
from flows.workers.local import Workers, with_context
from pipeline.config import SamplingSettings
from pipeline.config.evaluation.suites import LmEvalSuite, suite_name
from pipeline.errors import RunError, UserError
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.suites.result import Measure, SuiteResult
from pipeline.models.foreign import load_tokenizer
from pipeline.models.weights.adapter_folder import base_of
from pipeline.sampling.sampler import SampleRequest, engine_context
from pipeline.types import Message, Prompt

# The harness's own, which choose its examples before a question.
_FEWSHOT_SEED = 1234


def measure_tasks(
    context: Context,
    round_: int,
    suite: LmEvalSuite,
    folder: Path,
    workers: Workers,
    check: Callable[[list[Prompt]], None],
) -> SuiteResult:
    """Measure the suite's tasks on the policy of ``round_``.

    ``folder`` keeps the engine's answers; ``check`` sees the questions before any is asked.

    Raises:
        UserError: an unknown task, or one that engines cannot answer.
    """
    place = f"evaluation.suites: {suite_name(suite)}"
    require_harness(place)
    from flows.stages.measures.harness import EngineLM, KeptAnswers

    stage = context.run.stage(round_, "policy")
    model = context.model_path(stage)

    def draw(
        prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[tuple[int, ...]]:
        requests = [SampleRequest(tuple(ids), seed) for ids, seed in zip(prompts, seeds, strict=True)]
        return (answer[0].token_ids for answer in workers.sample(model, stage.folder, requests, settings))

    lm = EngineLM(
        load_tokenizer(str(base_of(model)), trust_remote_code=context.config.trusts_policy),
        _context(context, suite, model),
        lambda sequences: workers.ranked(model, stage.folder, sequences),
        draw,
        KeptAnswers(folder / "answers.jsonl"),
        lambda done, total: context.report(done, total, suite_name(suite)),
        context.config.seed,
    )
    loaded = load_tasks(suite, place)
    check(_questions(suite, loaded))
    from lm_eval.evaluator import evaluate

    found = evaluate(
        lm=lm, task_dict=loaded, limit=suite.limit, apply_chat_template=suite.chat, bootstrap_iters=0, log_samples=True
    )
    if found is None:
        raise RunError(f"{place}: the harness gave no results")
    return _result(suite, found, [*loaded["tasks"]])


def require_harness(field: str) -> None:
    """Raise ``UserError`` unless lm-evaluation-harness is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"{field}: needs the package lm_eval; pip install 'prefloop[evals]'")


def load_tasks(suite: LmEvalSuite, place: str) -> Any:
    """Load the suite's tasks with their data. Raises ``UserError`` for an unknown or unreadable one."""
    from lm_eval.tasks import TaskManager

    # It tells of every default that it fills in.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Its own tasks are thousands of files, which take half a minute to index.
    manager = TaskManager(include_path=suite.include, include_defaults=suite.include is None)
    if suite.include is not None and any(name not in manager.all_tasks for name in suite.tasks):
        manager = TaskManager(include_path=suite.include)
    unknown = [name for name in suite.tasks if name not in manager.all_tasks]
    if unknown:
        raise UserError(f"{place}: tasks: {unknown[0]!r} is no task of lm-evaluation-harness, nor one in include")
    try:
        loaded = manager.load([*suite.tasks])
    except Exception as error:  # a task's own code, and its data's readers, may raise anything
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{place}: tasks: {', '.join(suite.tasks)} cannot be loaded: {said[:300]}") from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        # As the harness: a task that is to have none keeps to that.
        task.set_config(key="num_fewshot", value=own if own == 0 or suite.fewshot is None else suite.fewshot)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _context(context: Context, suite: LmEvalSuite, model: Path) -> int:
    """The longest sequence that is asked of the engine, in tokens."""
    config = context.config
    engine = with_context(config).model_dump().get("context")
    usual = config.chat.max_prompt_tokens + config.sampling.max_tokens + 1
    wanted = min(suite.context or engine or usual, engine or suite.context or usual)
    return engine_context(wanted, str(base_of(model))) or wanted


def _questions(suite: LmEvalSuite, loaded: Any) -> list[Prompt]:
    """What the tasks ask, without examples and templates, as the user's turn."""
    asked = []
    for task in loaded["tasks"].values():
        for doc in islice(task.eval_docs, suite.limit):
            text = task.doc_to_text(doc)
            if isinstance(text, str):
                asked.append(Prompt((Message("user", text),)))
    return asked


def _result(suite: LmEvalSuite, found: Mapping[str, Any], leaves: Sequence[str]) -> SuiteResult:
    """The harness's metrics as ``TASK_METRIC``, or ``METRIC`` of a single task.

    The main one is a mean over the tasks; of tasks with different metrics, the first one's.
    """
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    names = [*suite.tasks] if all(_names(results.get(name, {})) for name in suite.tasks) else [*leaves]
    chosen = {name: _main(suite, results[name]) for name in names}
    alike = [name for name in names if chosen[name] == chosen[names[0]]]
    names = names if len(alike) == len(names) else names[:1]

    def called(task: str, metric: str) -> str:
        name, _, filtered = metric.partition(",")
        parts = [task if len(results) > 1 else "", name, "" if filtered == "none" else filtered]
        return "_".join(part for part in parts if part).replace("-", "_")

    metrics = {
        called(task, metric): _measure(found, task, metric)
        for task, values in results.items()
        for metric in _names(values)
    }
    main = called(names[0], chosen[names[0]])
    items = _items(found, names[0], chosen[names[0]]) if len(names) == 1 else {}
    if len(names) > 1:
        main = "main"
        metrics[main] = _mean([metrics[called(name, chosen[name])] for name in names])
    better = found["higher_is_better"].get(names[0], {}).get(chosen[names[0]].partition(",")[0])
    return SuiteResult("lm_eval", main, metrics, items, falls=better is False)


def _names(values: Mapping[str, Any]) -> list[str]:
    return [
        name for name, value in values.items()
        if "," in name and "_stderr," not in name and isinstance(value, int | float)
    ]  # fmt: skip


def _main(suite: LmEvalSuite, values: Mapping[str, Any]) -> str:
    named = [name for name in _names(values) if suite.metric in (None, name.partition(",")[0])]
    if not named:
        known = ", ".join(dict.fromkeys(name.partition(",")[0] for name in _names(values)))
        raise UserError(f"evaluation.suites: {suite_name(suite)}: metric: {suite.metric}: its tasks have {known}")
    return named[0]


def _measure(found: Mapping[str, Any], task: str, metric: str) -> Measure:
    """The metric, with an interval over rows if it is their mean."""
    value, items = float(found["results"][task][metric]), _items(found, task, metric)
    if not items or abs(sum(items.values()) / len(items) - value) > 1e-9:
        return value
    return rate_interval([*items.values()])


def _items(found: Mapping[str, Any], task: str, metric: str) -> dict[str, float]:
    """The metric of each row; empty if it is no number of a row from 0 to 1."""
    name, _, filtered = metric.partition(",")
    rows = [row for row in found.get("samples", {}).get(task, []) if row.get("filter", "none") == filtered]
    values = {f"{task}/{row['doc_id']}": row.get(name) for row in rows}
    usable = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values.values())
    return {key: float(value) for key, value in values.items() if value is not None} if usable else {}


def _mean(parts: Sequence[Measure]) -> Measure:
    if len(parts) == 1:
        return parts[0]
    means = [part.mean if isinstance(part, Interval) else part for part in parts]
    mean = sum(means) / len(means)
    spans = [(part.mean - part.low, part.high - part.mean) for part in parts if isinstance(part, Interval)]
    if len(spans) < len(parts):
        return mean
    below, above = (sum(span[side] ** 2 for span in spans) ** 0.5 / len(parts) for side in (0, 1))
    return Interval(mean, mean - below, mean + above)
