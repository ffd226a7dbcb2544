"""Train a reward model on pairs and evaluate it on held-out pairs. Torch is loaded when training starts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline.config import ClassifierScorer, RewardModelConfig
from pipeline.errors import RowsError, UserError, first_lines
from pipeline.models.rendering.template import Rendering
from pipeline.storage.atomic import json_line, write_json, write_text
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.training.step_log import STEPS
from pipeline.types import Group, Response, TextPair, derive_seed
from reward_models.local.conversations import Conversations
from reward_models.training.comparisons import Comparison, compare, example
from reward_models.training.metrics import Judged, percent, reliability, reward_summary, tie_eta

OFFENDING_PAIRS = "offending.json"


# The fields of a step's report that make sense for rewards.
REPORTED = ("step", "loss", "learning_rate", "grad_norm", "margin", "accuracy", "tokens", "padding", "seconds")


_Metrics = dict[str, JsonValue]


def quieten() -> None:
    """Stop transformers from warning that a language model has no reward head, and from drawing progress bars."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def train_on(config: RewardModelConfig, pairs: Sequence[TextPair], folder: Path, on_step: Any) -> _Metrics:
    """Train on ``pairs``, write model and history to ``folder``, and return the metrics."""
    import torch

    from pipeline.losses import Loss
    from pipeline.models.classifier_scores import RowScores, embedding_count, padding_id
    from pipeline.training.train import train
    from pipeline.training.trainee import Files, Trainee
    from reward_models.training.start import load_start, save_reward_model

    model, tokenizer = load_start(config.model, config.seed)
    ties = config.ties != "drop"
    conversations = Conversations(tokenizer, embeddings=embedding_count(model), rendering=_rendering(config))
    kept, dropped = compare(pairs, conversations, padding_id(model), config.max_tokens, ties=ties)
    if not kept:
        causes = first_lines([f"{cause}: {count}" for cause, count in dropped.items() if count])
        raise UserError(f"{config.pairs.where}: no pair is left to train on; dropped by cause:\n{causes}")
    eta = _eta(config, kept)
    # The attention check must run on the device that trains.
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    loss = Loss("bradley_terry" if eta is None else "rao_kupper", config.composition(eta))
    try:
        result = train(
            Trainee(RowScores(model, {0: 1.0}, config.training.dtype, share_prompts=config.training.packing)),
            [example(comparison) for comparison in kept],
            loss,
            config.training,
            seed=derive_seed(config.seed, "reward model"),
            files=Files(folder / CHECKPOINTS),
            on_step=on_step,
        )
    except RowsError as error:
        _keep_offending_pairs(kept, folder, error)
        raise
    save_reward_model(model, tokenizer, folder, config.model.path)
    steps = [asdict(step) for step in result.history]
    write_text(folder / STEPS, "".join(json_line({name: step[name] for name in REPORTED}) for step in steps))
    said = {name: value for name, value in result.metrics.items() if "logp" not in name and name != "response_tokens"}
    known: _Metrics = {} if eta is None else {"eta": eta}
    return {"pairs": len(kept), "dropped": dict(dropped), "padded_because": result.padded_because, **known, **said}


def _keep_offending_pairs(kept: Sequence[Comparison], folder: Path, error: Any) -> None:
    """Save the failed step's pairs next to the last good checkpoint."""
    suspects = set(error.example_ids)
    pairs = [comparison.pair for comparison in kept if example(comparison).id in suspects]
    write_json(folder / OFFENDING_PAIRS, [asdict(pair) for pair in pairs])
    error.args = (
        f"{error}\n  the pairs are in {folder / OFFENDING_PAIRS}, the earlier weights in {folder / CHECKPOINTS}",
    )


def _eta(config: RewardModelConfig, kept: Sequence[Comparison]) -> float | None:
    """Return the η of Rao and Kupper; None if ties are not modelled."""
    if config.ties != "rao_kupper":
        return None
    if config.eta is not None:
        return config.eta
    ties = sum(comparison.pair.soft_label == 0.5 for comparison in kept)
    if ties in (0, len(kept)):
        raise UserError(f"ties: rao_kupper, but {ties} of {len(kept)} pairs are ties; set eta, or use drop or half")
    return tie_eta(ties / len(kept))


def _rendering(config: RewardModelConfig) -> Rendering | None:
    chat = config.chat
    return Rendering(chat.template_kwargs, chat.template_file) if chat.rerendered else None


def judge(folder: Path, config: RewardModelConfig, pairs: Sequence[TextPair], eta: float | None) -> _Metrics:
    """Evaluate the model folder on held-out ``pairs``, loaded as the scorer loads it; draw the reliability plot."""
    from reward_models.local.classifier import ClassifierReward
    from reward_models.training.reliability_plot import draw_reliability

    scorer = ClassifierReward(ClassifierScorer(path=str(folder), max_tokens=config.max_tokens), _rendering(config))
    rewards = scorer.score([Group(p.prompt, (), (_response(p.chosen), _response(p.rejected))) for p in pairs])
    judged = [
        Judged(chosen - rejected, pair.soft_label, len(pair.chosen), len(pair.rejected), pair.prompt.id)
        for pair, (chosen, rejected) in zip(pairs, rewards, strict=True)
        if chosen is not None and rejected is not None
    ]
    bins, found = reliability(judged, eta or 0.0), reward_summary(judged, eta)
    title = f"{config.name}: {found['pairs']} held-out pairs, calibration error {percent(found['ece'])}"
    (folder / "reliability.svg").write_bytes(draw_reliability(bins, title))
    return {**found, "reliability": [asdict(one) for one in bins], **scorer.facts}


def describe_held_out(found: _Metrics) -> list[str]:
    """Describe the held-out metrics in a few lines."""
    lines = [
        f"held-out pairs {found['pairs']}, ties {found['ties']}",
        f"accuracy {percent(found['accuracy'])}{_between(found)}; the longer answer wins in "
        f"{percent(found['longer_wins'])}",
        f"expected calibration error {percent(found['ece'])}, loss {found['loss']:.4f}",
    ]
    if "eta" in found:
        lines.append(f"ties {percent(found['tie_share'])}, predicted {percent(found['tie_probability'])}")
    by_length = found["by_length"]
    assert isinstance(by_length, list)
    lines.append("length of the better answer over the other's:")
    for row in by_length:
        assert isinstance(row, dict)
        lines.append(
            f"  {row['better_over_other']!s:>12}: {row['pairs']!s:>5} pairs, accuracy {percent(row['accuracy'])}"
        )
    return lines


def _between(found: _Metrics) -> str:
    """The accuracy's interval; metrics of earlier versions have a standard error alone."""
    ends = found.get("accuracy_ci")
    if isinstance(ends, list):
        return f" (95 % interval {percent(ends[0])} to {percent(ends[1])})"
    return f" ± {percent(found['accuracy_error'])}"


def _response(text: str) -> Response:
    return Response(text, (), (), "stop")
