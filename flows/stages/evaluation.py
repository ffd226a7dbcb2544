"""evaluation: a round's responses to held-out prompts, scored and compared with the start and the previous round."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from flows.report.findings.lag import KL_TO_SAMPLED
from flows.stages.context import Context, Outcome, offending_file, policy_chat, policy_rendering
from flows.stages.data import held_out_prompts, text_preferences, training_prompts
from flows.stages.labels.shards import LabelProgress, open_accounts
from flows.stages.measures.held_out import (
    held_out_examples,
    held_out_metrics,
    parts_of_pairs,
    write_held_out_prompts,
)
from flows.stages.measures.parts import (
    WinsByPrompt,
    compared_rounds,
    held_out_names,
    parts_of_prompts,
    win_rates,
    wins_of,
)
from flows.stages.training.frozen import FrozenPolicy
from pipeline.config import SlotScorer, compares
from pipeline.data.tasks.slots import slot_metrics
from pipeline.errors import RunError
from pipeline.evaluation.breakdown import ByPart, PartNames, by_criterion, kl_by_part, parts_together, reward_measures
from pipeline.evaluation.metrics import (
    THINKING,
    describe_responses,
    kl_interval,
    per_token,
    sampler_gap,
)
from pipeline.models.chat import Chat
from pipeline.models.handshake import coarser_dtype
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups, write_groups
from pipeline.training.reference import kl_per_token
from pipeline.types import Group
from reward_models.answers.accounts import label_summary
from reward_models.build import build_labeller
from reward_models.labeller import Labeller, label

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
# How many of the worst rows are kept if they differ by more.
WORST = 16
_Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]
_Groups = dict[str, list[Group]]
_Logps = Sequence[tuple[float, ...]]


def evaluation(context: Context, round_: int, folder: Path) -> Outcome:
    """Write metrics.json and the scored responses."""
    refuse_leak(context, round_)
    groups, wins, metrics = _labelled(context, round_, folder)
    parts = parts_of_prompts(context, round_, groups["sampled"], folder)
    of_model, apart = _model_metrics(context, round_, groups["sampled"], parts)
    metrics |= of_model | _held_out(context, round_, folder)
    metrics |= parts_together(_by_part(context, parts, groups, wins), *apart)
    settings = context.config.evaluation
    criteria = by_criterion(groups["sampled"], settings.bootstrap, settings.seed)
    metrics |= {"by_criterion": criteria} if criteria else {}
    write_json(folder / "metrics.json", metrics)
    return Outcome(len(groups["sampled"]), metrics)


def _labelled(context: Context, round_: int, folder: Path) -> tuple[_Groups, WinsByPrompt, _Metrics]:
    """Return the round's responses, their win rates, and the metrics of texts and labels; write what is scored."""
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
        wins = {} if scorer is None else _wins(context, round_, groups["sampled"], scorer)
        labelling = label_summary([accounts.take()], accounts)
    metrics: _Metrics = {"round": round_, "reward": None, **describe_responses(groups["sampled"])}
    metrics["reward_greedy"] = describe_responses(groups["greedy"]).get("reward")
    metrics |= _thinking(context, round_) | win_rates(wins) | _slots(context, groups["greedy"], groups["sampled"])
    return groups, wins, {**metrics, **({"labelling": labelling} if labelling else {})}


def _slots(context: Context, greedy: Sequence[Group], sampled: Sequence[Group]) -> _Metrics:
    """Errors of slots, if the run's labels are about them."""
    return {**slot_metrics(greedy, sampled)} if isinstance(context.config.scorer, SlotScorer) else {}


def _by_part(context: Context, parts: PartNames, groups: _Groups, wins: WinsByPrompt) -> dict[str, ByPart]:
    """The same for each part of the prompts."""
    settings, greedy = context.config.evaluation, {group.prompt.id: group for group in groups["greedy"]}

    def measure(sampled: list[Group]) -> _Metrics:
        first = [greedy[group.prompt.id] for group in sampled if group.prompt.id in greedy]
        told = describe_responses(sampled)
        found = reward_measures(sampled, wins, settings.bootstrap, settings.seed)
        found |= {name: told[name] for name in ("response_length", "stop_rate")}
        reward = describe_responses(first).get("reward") if first else None
        return found | ({} if reward is None else {"reward_greedy": reward}) | _slots(context, first, sampled)

    return parts.measured([(group.prompt.id, group) for group in groups["sampled"]], measure)


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


def _wins(context: Context, round_: int, sampled: Sequence[Group], scorer: Labeller) -> WinsByPrompt:
    wins = WinsByPrompt()
    for name, other in compared_rounds(context, round_).items():
        others = sampled if other == round_ else _earlier(context, other)
        wins[name] = wins_of(sampled, others, scorer, compares=_compares(context))
    return wins


def _earlier(context: Context, round_: int) -> list[Group]:
    return list(read_groups(context.run.stage(round_, "evaluation").folder / "sampled"))


def _model_metrics(
    context: Context, round_: int, sampled: Sequence[Group], parts: PartNames
) -> tuple[_Metrics, list[dict[str, ByPart]]]:
    """KL to the start and the previous policy on this round's samples, and likelihoods of the reference responses.

    Beside them the same for each part of the prompts.
    """
    settings = context.config.evaluation
    referenced, texts = _reference_texts(sampled, policy_chat(context.config, context.policy_path(round_)))
    drawn = [(group.prompt_ids, response.token_ids) for group in sampled for response in group.responses]

    def scored(number: int, sequences: _Sequences) -> list[tuple[float, ...]]:
        def report(done: int) -> None:
            context.report(done, len(sequences), f"under the policy of round {number}")

        with FrozenPolicy(context, context.policy_path(number)) as policy:
            return policy.logps(sequences, report)

    both = scored(round_, drawn + texts)
    own, of_texts = both[: len(drawn)], both[len(drawn) :]
    rounds = compared_rounds(context, round_)
    others = {name: own if other == round_ else scored(other, drawn) for name, other in rounds.items()}
    metrics = _kl(context, sampled, own, others)
    apart = [kl_by_part(parts, sampled, own, others, settings.bootstrap, settings.seed)]
    if texts:
        metrics["reference_logprob"] = per_token(of_texts)
        rows = zip(referenced, of_texts, strict=True)
        apart.append(parts.measured(rows, lambda part: {"reference_logprob": per_token(part)}))
    metrics["sampler_trainer_gap"] = sampler_gap(sampled, own)
    require_small_gap(context, round_, sampled, own)
    return metrics, apart


def _kl(context: Context, sampled: Sequence[Group], own: _Logps, others: Mapping[str, _Logps]) -> _Metrics:
    settings, metrics = context.config.evaluation, _Metrics()
    for name, theirs in others.items():
        metrics[f"kl_to_{name}"] = kl_per_token(own, theirs)
        interval = kl_interval(sampled, own, theirs, settings.bootstrap, settings.seed)
        metrics[f"kl_to_{name}_ci"] = None if interval is None else [interval.low, interval.high]
    if context.config.training.lag:
        # Its parent is what the next round samples.
        metrics |= {f"{KL_TO_SAMPLED}{end}": metrics[f"kl_to_previous{end}"] for end in ("", "_ci")}
    return metrics


def _held_out(context: Context, round_: int, folder: Path) -> _Metrics:
    """Measures of held-out pairs; nothing without any."""
    chat = policy_chat(context.config, context.policy_path(round_))
    pairs = held_out_examples(context, chat)
    if not pairs:
        return {}
    parts = parts_of_pairs(context, chat, held_out_names(context, round_, folder))
    metrics = held_out_metrics(context, round_, pairs, folder, parts)
    write_held_out_prompts(context, chat, folder)
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


def _reference_texts(sampled: Sequence[Group], chat: Chat) -> tuple[list[str], _Sequences]:
    """Ids of prompts, and their reference responses, among those sampled from (over-long prompts are left out)."""
    ids, texts = list[str](), _Sequences()
    for group in sampled:
        if group.prompt.reference:
            ids.append(group.prompt.id)
            texts.append((group.prompt_ids, chat.response_ids(group.prompt.messages, group.prompt.reference)))
    return ids, texts
