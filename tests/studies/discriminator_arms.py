"""The arms of the discriminator's study: how each is configured and run, and what its folder says afterwards."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from flows.loop.preparation import prepare_run
from flows.loop.rounds import Stages, labelled, learn, start_run
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.local import Workers
from pipeline.config import KeywordScorer, RunConfig
from pipeline.config.files import load_config
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS, read_steps
from reward_models.rules import KeywordReward
from reward_models.training.gold import gold_accuracy
from tests.support.places import CONFIGS

CONFIG = CONFIGS / "discriminator.yaml"
ONLINE, STATIC, SELF = "discriminator", "static reward model", "self-reward"
ONCE, REPLAY = "gold alone, once", "gold alone, with replay"
# Who labels what no gold was bought for.
SILVER = {ONLINE: "online", ONCE: "none", REPLAY: "none", STATIC: "static", SELF: "self"}
ARMS = tuple(SILVER)
# Settings of the policy that every arm starts from.
START = ("policy.", "warm_start.")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """An arm after a round; 0 is the start.

    Attributes:
        bought: gold comparisons so far.
        reward: mean gold reward of responses to held-out prompts, sampled at temperature 1.
        kl_to_start: nats per token.
        tokens: mean length of a response.
        accuracy: share of pairs of the round's own responses that its labels rank as gold does, where no gold was
            bought; None where there are no such labels.
        pairs: trained on.
        steps: optimiser steps of the policy.
    """

    round: int
    bought: int
    reward: float
    kl_to_start: float
    tokens: float
    accuracy: float | None
    pairs: int
    steps: int


def make_start(settings: Sequence[str], out: Path, workers: Workers, say: Say) -> None:
    """The policy that every arm starts from, whatever its seed."""
    config = load_config([CONFIG], settings)
    stage = _Stages(prepare_run(config, out / "start"), config, workers, say)
    stage("policy", 0, stage("data", 0))


def run_arm(arm: str, seed: int, settings: Sequence[str], out: Path, workers: Workers, say: Say) -> list[Point]:
    """Run an arm, or go on with it; its points, round by round. ``gold alone, with replay`` is run after the first."""
    config = arm_config(arm, seed, settings, out)
    run = prepare_run(config, arm_folder(arm, seed, out))
    stage = _Stages(run, config, workers, lambda said: say(f"{arm}, seed {seed}, {said}"))
    _, policy = start_run(stage, config)
    for round_ in range(1, config.rounds + 1):
        labels = labelled(stage, config, round_, policy)
        policy = learn(stage, config, round_, stage("pairs", round_, labels), policy)
    return read_points(run, config)


def arm_folder(arm: str, seed: int, out: Path) -> Path:
    """Where an arm runs."""
    return out / f"{arm.replace(',', '').replace(' ', '_')}_{seed}"


def arm_config(arm: str, seed: int, settings: Sequence[str], out: Path) -> RunConfig:
    """The study's config under ``settings``, made an arm; it starts from the policy that they have made."""
    common = [setting for setting in settings if not setting.startswith(START)]
    return load_config([CONFIG], [*common, *_arm_settings(arm, seed, load_config([CONFIG], settings), out)])


def _arm_settings(arm: str, seed: int, config: RunConfig, out: Path) -> list[str]:
    policy = RunFolder(out / "start").stage(0, "policy").folder
    made = [f"seed={seed}", f"policy={{kind: pretrained, path: {policy}}}", "warm_start=null"]
    made.append(f"discriminator.silver={SILVER[arm]}")
    if arm == REPLAY:
        # All gold so far, for as many optimiser steps as the discriminator's policy takes.
        online = RunFolder(arm_folder(ONLINE, seed, out))
        steps = max(_steps(online, round_) for round_ in range(1, config.rounds + 1))
        made += [f"training.epochs={steps}", f"training.max_steps={steps}"]
        made.append(f"replay={{share: {1 - 1 / config.rounds:.4f}, decay: 1}}")
    return made


class _Stages(Stages):
    """The stages of a run in this process: the sampler stays warm from one arm to the next."""

    def __init__(self, run: RunFolder, config: RunConfig, workers: Workers, say: Say) -> None:
        self._run, self._config, self._workers, self._say = run, config, workers, say

    def __call__(self, name: str, round_: int, *inputs: str) -> str:
        stage = self._run.stage(round_, name)
        if run_stage(Context(self._run, self._config), round_, name, self._workers):
            self._say(f"round {round_}: {name} in {stage.require().seconds:.1f} s")
        return stage.title


def read_points(run: RunFolder, config: RunConfig) -> list[Point]:
    """What the folder of a finished arm says."""
    points: list[Point] = []
    bought = 0
    for round_ in range(config.rounds + 1):
        metrics = json.loads((run.stage(round_, "evaluation").folder / "metrics.json").read_text(encoding="utf-8"))
        labels, pairs = run.stage(round_, "labels").folder, 0
        if round_:
            gold = run.stage(round_, "gold")
            bought += gold.require().rows if gold.folder.exists() else 0
            pairs = run.stage(round_, "pairs").require().rows
        points.append(
            Point(
                round_,
                bought,
                metrics["reward"],
                metrics["kl_to_start"],
                metrics["response_length"],
                _accuracy(run, config, round_) if labels.exists() else None,
                pairs,
                _steps(run, round_) if round_ else 0,
            )
        )
    return points


def _accuracy(run: RunFolder, config: RunConfig, round_: int) -> float | None:
    """Of the round's labels against gold, over all pairs of one prompt's responses that gold does not tie."""
    assert isinstance(config.scorer, KeywordScorer)
    stage = run.stage(round_, "gold").folder
    gold = {group.prompt.id for group in read_groups(stage)} if stage.exists() else set()
    groups = [group for group in read_groups(run.stage(round_, "labels").folder) if group.prompt.id not in gold]
    compared, margins = [], []
    for group, rewards in zip(groups, KeywordReward(config.scorer).score(groups), strict=True):
        for first, second in combinations(range(len(rewards)), 2):
            said = group.scores[first], group.scores[second]
            assert said[0] is not None and said[1] is not None, "who labels the rest leaves no response without a score"
            compared.append(replace(group.only((first, second)), scores=(rewards[first], rewards[second])))
            margins.append(said[0] - said[1])
    return gold_accuracy(compared, margins)[0]


def _steps(run: RunFolder, round_: int) -> int:
    return len(read_steps(run.stage(round_, "policy").folder / STEPS))
