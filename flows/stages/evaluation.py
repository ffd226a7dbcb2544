"""evaluation: a round's responses to held-out prompts, scored and compared with the start and the previous round."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from flows.report.findings.lag import KL_TO_SAMPLED
from flows.run_folder.ancestry import parent
from flows.stages.context import Context, Outcome, offending_file, policy_chat, policy_rendering
from flows.stages.data import held_out_prompts, text_preferences, training_prompts
from flows.stages.labels.shards import LabelProgress, open_accounts
from flows.stages.measures.held_out import held_out_examples, held_out_metrics, pair_names, write_held_out_prompts
from flows.stages.training.frozen import FrozenPolicy
from pipeline.config import SlotScorer, compares
from pipeline.data.spool.categories import held_out_categories
from pipeline.data.tasks.slots import slot_metrics
from pipeline.errors import RunError
from pipeline.evaluation.breakdown import by_category, by_criterion, by_source
from pipeline.evaluation.intervals import Interval, rate_interval
from pipeline.evaluation.metrics import (
    THINKING,
    describe_responses,
    kl_interval,
    per_token,
    sampler_gap,
    win_rate,
    wins_by_score,
)
from pipeline.models.chat import Chat
from pipeline.models.handshake import coarser_dtype
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups, write_groups
from pipeline.training.reference import kl_per_token
from pipeline.types import Group
from reward_models.answers.accounts import label_summary
from reward_models.build import build_labeller
from reward_models.labeller import Labeller, label, wins_by_comparison

_Metrics = dict[str, JsonValue]
# Largest difference between sampler and trainer from rounding: nats per token, mean over a round's responses.
MAX_GAP = {
    "float32": 0.01,
    "float16": 0.1,
    "bfloat16": 0.3,
    "8-bit": 0.3,
    "quantised": 0.6,
    "4-bit": 0.6,
    "experts": 0.9,
}
CATEGORIES = "categories.json"
# How many of the worst rows are kept if they differ by more.
WORST = 16
_Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]


def evaluation(context: Context, round_: int, folder: Path) -> Outcome:
    """Write metrics.json and the scored responses."""
    refuse_leak(context, round_)
    sampled, metrics = _labelled(context, round_, folder)
    metrics |= _model_metrics(context, round_, sampled, folder)
    write_json(folder / "metrics.json", metrics)
    return Outcome(len(sampled), metrics)


def _labelled(context: Context, round_: int, folder: Path) -> tuple[list[Group], _Metrics]:
    """Return the round's sampled responses and the metrics of texts and labels; write the scored responses."""
    settings = context.config.scorer
    with open_accounts(context, round_, "evaluation") as accounts:
        accounts.changed = LabelProgress(context, 1, accounts).tick
        scorer = (
            None if settings is None else build_labeller(settings, accounts, rendering=policy_rendering(context.config))
        )
        groups = {name: _scored(context, round_, name, scorer) for name in ("greedy", "sampled")}
        for name, scored in groups.items():
            (folder / name).mkdir(exist_ok=True)
            write_groups(folder / name / "rows.parquet", scored)
        metrics: _Metrics = {"round": round_, "reward": None, **describe_responses(groups["sampled"])}
        metrics["reward_greedy"] = describe_responses(groups["greedy"]).get("reward")
        metrics |= _thinking(context, round_) | _win_rates(context, round_, groups["sampled"], scorer)
        categories = held_out_names(context, round_, folder)
        metrics |= _parts(context, round_, groups["sampled"], scorer, categories)
        labelling = label_summary([accounts.take()], accounts)
    if isinstance(settings, SlotScorer):
        metrics |= slot_metrics(groups["greedy"], groups["sampled"])
    return groups["sampled"], {**metrics, **({"labelling": labelling} if labelling else {})}


def _thinking(context: Context, round_: int) -> _Metrics:
    """How the sampled responses think, as counted where they were sampled; nothing for a policy without thoughts."""
    drawn = context.run.stage(round_, "evaluation_samples").require().metrics.get("sampled")
    return {name: drawn[name] for name in THINKING if name in drawn} if isinstance(drawn, dict) else {}


def _scored(context: Context, round_: int, name: str, scorer: Labeller | None) -> list[Group]:
    """The round's responses, with scores if the labeller scores single responses."""
    folder = context.run.stage(round_, "evaluation_samples").folder / name
    groups = list(read_groups(folder))
    if scorer is None or _compares(context):
        return groups
    return label(groups, scorer)


def _compares(context: Context) -> bool:
    return context.config.scorer is not None and compares(context.config.scorer)


def refuse_leak(context: Context, round_: int) -> None:
    """Raise ``RunError`` if a held-out prompt is a training prompt or in any pair of the data set."""
    held_out = {prompt.id for prompt in held_out_prompts(context)}
    trained = chain(training_prompts(context, round_), (row.prompt for row in text_preferences(context)))
    leaked = {prompt.id for prompt in trained if prompt.id in held_out}
    if leaked:
        raise RunError(f"{len(leaked)} held-out prompts are training prompts too")


def _win_rates(context: Context, round_: int, sampled: Sequence[Group], scorer: Labeller | None) -> _Metrics:
    metrics: _Metrics = {}
    for name, other in (("start", 0), ("previous", parent(context.run, context.config, round_))):
        interval: Interval | None = None
        if scorer is not None:
            others = sampled if other == round_ else _earlier(context, other)
            if _compares(context):
                interval = rate_interval([*wins_by_comparison(sampled, others, scorer).values()])
            else:
                interval = win_rate(sampled, others)
        metrics[f"win_rate_vs_{name}"] = None if interval is None else interval.mean
        metrics[f"win_rate_vs_{name}_ci"] = None if interval is None else [interval.low, interval.high]
    return metrics


def held_out_names(context: Context, round_: int, folder: Path) -> dict[str, str]:
    """The category of each held-out prompt by its id; read once, in round 0, and written to ``folder``."""
    column = context.config.evaluation.category
    if column is None:
        return {}
    file = context.run.stage(0, "evaluation").folder / CATEGORIES
    if round_ == 0 or not file.is_file():
        found = held_out_categories(context.config, column, [prompt.id for prompt in held_out_prompts(context)])
        write_json(folder / CATEGORIES, dict(found))
        return found
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return known


def _parts(
    context: Context, round_: int, sampled: Sequence[Group], scorer: Labeller | None, categories: Mapping[str, str]
) -> _Metrics:
    """The same by where prompts are from, if that differs, by category and by the criteria of rubrics."""
    settings, wins = context.config.evaluation, dict[str, float]()
    several = len({group.prompt.source for group in sampled}) > 1 or len({*categories.values()}) > 1
    if scorer is not None and several:
        start = sampled if round_ == 0 else _earlier(context, 0)
        # A judge has compared them already, so its answers are in the cache.
        compared = _compares(context)
        wins = wins_by_comparison(sampled, start, scorer) if compared else wins_by_score(sampled, start)
    found = {
        "by_source": by_source(sampled, wins, settings.bootstrap, settings.seed),
        "by_category": by_category(sampled, categories, wins, settings.bootstrap, settings.seed),
        "by_criterion": by_criterion(sampled, settings.bootstrap, settings.seed),
    }
    return {name: parts for name, parts in found.items() if parts}


def _earlier(context: Context, round_: int) -> list[Group]:
    return list(read_groups(context.run.stage(round_, "evaluation").folder / "sampled"))


def _model_metrics(context: Context, round_: int, sampled: Sequence[Group], folder: Path) -> _Metrics:
    """KL to the start and the previous policy on this round's samples, and likelihoods of the reference responses."""
    config, settings = context.config, context.config.evaluation
    chat = policy_chat(config, context.policy_path(round_))
    texts = _reference_texts(sampled, chat)
    drawn = [(group.prompt_ids, response.token_ids) for group in sampled for response in group.responses]
    pairs = held_out_examples(context, chat)

    def scored(number: int, sequences: _Sequences) -> list[tuple[float, ...]]:
        def report(done: int) -> None:
            context.report(done, len(sequences), f"under the policy of round {number}")

        with FrozenPolicy(context, context.policy_path(number)) as policy:
            return policy.logps(sequences, report)

    own = scored(round_, drawn + texts)
    metrics: _Metrics = {}
    for name, other in (("start", 0), ("previous", parent(context.run, context.config, round_))):
        theirs = own if other == round_ else scored(other, drawn)
        metrics[f"kl_to_{name}"] = kl_per_token(own[: len(drawn)], theirs[: len(drawn)])
        interval = kl_interval(sampled, own[: len(drawn)], theirs[: len(drawn)], settings.bootstrap, settings.seed)
        metrics[f"kl_to_{name}_ci"] = None if interval is None else [interval.low, interval.high]
    if config.training.lag:
        # Its parent is what the next round samples.
        metrics |= {f"{KL_TO_SAMPLED}{end}": metrics[f"kl_to_previous{end}"] for end in ("", "_ci")}
    if texts:
        metrics["reference_logprob"] = per_token(own[len(drawn) :])
    if pairs:
        names = pair_names(context, chat, held_out_names(context, round_, folder))
        metrics |= held_out_metrics(context, round_, pairs, folder, names)
        write_held_out_prompts(context, chat, folder)
    metrics["sampler_trainer_gap"] = sampler_gap(sampled, own[: len(drawn)])
    require_small_gap(context, round_, sampled, own[: len(drawn)])
    return metrics


def require_small_gap(
    context: Context, round_: int, sampled: Sequence[Group], own: Sequence[tuple[float, ...]]
) -> None:
    """Refuse a sampler whose log-probabilities of the same responses have drifted from the trainer's.

    Raises:
        RunError: the mean difference is above ``evaluation.max_gap``; the worst rows are kept.
    """
    found, limit = sampler_gap(sampled, own), _gap_limit(context, round_)
    if found is None or limit is None or found <= limit:
        return
    theirs = iter(own)
    gaps = [(group, sampler_gap([group], [next(theirs) for _ in group.responses]) or 0.0) for group in sampled]
    # A NaN gap puts its row first.
    gaps.sort(key=lambda one: -math.inf if math.isnan(one[1]) else -one[1])
    kept = offending_file(context, f"round_{round_:03d}/evaluation")
    write_groups(kept, [group for group, gap in gaps[:WORST]])
    raise RunError(
        f"sampler and trainer differ by {found:.3g} nats per token on the policy's own responses, by {gaps[0][1]:.3g} "
        f"in the worst (evaluation.max_gap: {limit:g}): they compute different policies; the worst rows are in {kept}"
    )


def _gap_limit(context: Context, round_: int) -> float | None:
    """The config's limit, or that of the coarser of the two precisions; None if the sampler did not report its own."""
    config = context.config
    if config.evaluation.max_gap is not None:
        return config.evaluation.max_gap
    drawn = context.run.stage(round_, "evaluation_samples").require().metrics.get("sampled")
    shake = drawn.get("weight_handshake") if isinstance(drawn, dict) else None
    dtype = shake.get("dtype") if isinstance(shake, dict) else None
    return None if dtype is None else MAX_GAP[coarser_dtype(str(dtype), context.precision)]


def _reference_texts(sampled: Sequence[Group], chat: Chat) -> _Sequences:
    """Reference responses to the prompts that were sampled from (over-long prompts are left out)."""
    return [
        (group.prompt_ids, chat.response_ids(group.prompt.messages, group.prompt.reference))
        for group in sampled
        if group.prompt.reference
    ]
