"""What a round of images computes, in passes of one image through the network, and measured rates of these."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from flows.planning.arithmetic import made_examples
from flows.planning.counts import Tables
from pipeline.config import DiffusersSampler, RunConfig
from pipeline.config.loss.needs import needs_of
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.networks import predict

# Draws of an image for the surrogate of KL and of a held-out pair, as evaluations have them.
_KL_DRAWS, _PAIR_DRAWS = 4, 8
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ImageRound:
    """The size of a round: images drawn to train on and to evaluate, examples, their images, draws and references."""

    sampled: int
    evaluated: int
    examples: int
    sides: int
    draws: int
    trained: float
    references: int
    held_out_pairs: int
    steps: int
    guided: bool

    def passes(self) -> dict[str, float]:
        """Passes of one image by kind of work; labelling counts images."""
        drawn = self.sampled + self.evaluated
        scored = self.references * self.examples * self.sides * self.draws
        return {
            "sampling": drawn * self.steps * (1 + self.guided),
            "labelling": drawn,
            # Under this policy, the start and the one before.
            "scoring": scored + 3 * self.evaluated * _KL_DRAWS + 2 * 2 * self.held_out_pairs * _PAIR_DRAWS,
            "training": self.trained,
        }


def count_round(config: RunConfig, tables: Tables) -> ImageRound:
    """Count one round of ``config``."""
    training, needs = config.training, needs_of(config.loss)
    assert isinstance(config.sampler, DiffusersSampler), "the config's validator requires it"
    offline = config.mode == "offline"
    prompts = min(config.prompts_per_round or len(tables.prompts), len(tables.prompts))
    given = len(tables.pairs) + len(tables.groups) + len(tables.unpaired)
    examples = given // config.rounds if offline else made_examples(config, len(tables.prompts))
    sides = config.sampling.n if needs.groups else 1 if needs.only_chosen or tables.unpaired else 2
    taken = examples * training.epochs
    if training.max_steps is not None:
        taken = min(taken, training.max_steps * training.batch_size)
    stored = needs.stored_reference and training.score.reference_errors == "stored"
    return ImageRound(
        sampled=0 if offline else prompts * config.sampling.n,
        evaluated=len(tables.held_out) * config.evaluation.samples,
        examples=examples,
        sides=sides,
        draws=training.score.draws * math.ceil(training.epochs),
        trained=taken * sides * training.score.draws,
        references=max(1, needs.references) if stored else 0,
        # At least one for each held-out prompt.
        held_out_pairs=len(tables.held_out) if offline else 0,
        steps=config.sampler.steps,
        guided=config.sampler.guidance != 1,
    )


def probed_passes(policy: ImagePolicy, rows: Mapping[str, int]) -> dict[str, float]:
    """Measure passes a second of ``policy``; ``rows``: of a pass of sampling, scoring and training."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = policy.network.to(device)

    def one(count: int, *, gradient: bool) -> None:
        noisy = torch.zeros(count, *policy.shape, device=device)
        told = tuple(c.to(device).expand(count, *c.shape[1:]) for c in policy.encode([_asked(policy)]))
        with torch.set_grad_enabled(gradient):
            found = predict(network, noisy, torch.zeros(count, device=device), told)
            if gradient:
                torch.autograd.backward(found.square().mean())
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {kind: rows[kind] / _timed(partial(one, rows[kind], gradient=kind == "training")) for kind in rows}


def _asked(policy: ImagePolicy) -> str | int | None:
    return "a picture" if policy.condition == "text" else 0 if policy.condition == "class" else None


def _timed(call: Callable[[], None]) -> float:
    """Seconds of a call: the first one warms up."""
    call()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS or calls < 2:
        call()
        calls += 1
    return (time.perf_counter() - started) / calls
