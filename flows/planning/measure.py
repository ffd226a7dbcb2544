"""Measurements of memory, each in a fresh process that has imported what it needs and done nothing else."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext
from typing import ParamSpec, TypeVar

from flows.planning.arithmetic import STATE_BYTES, TrainerMemory, carried_on
from flows.planning.probe import Measured, Probed, few_examples, score_a_little, train_a_little
from pipeline.config import Optimisation
from pipeline.errors import RunError
from pipeline.training.batches.examples import Example

P = ParamSpec("P")
T = TypeVar("T")
# Two numbers of layers, far enough apart to show what one layer adds. Models with at most so many parameters are
# measured whole, since the memory that an allocator cannot give back differs a little between layers.
FEW_LAYERS, MEASURED_WHOLE = (1, 3), 128_000_000
REPEATED = 3
# Tokens of passes without gradient; their memory is extrapolated to passes of the stage's own size.
FEW_TOKENS = (1024, 2048)


def apart(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run ``work`` in a separate process and return its result.

    Raises:
        RunError: the process was killed, as the system does when memory runs out.
    """
    context = ForkServerContext()
    context.set_forkserver_preload([Probed.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *args, **named).result()
        except BrokenProcessPool:
            raise RunError("plan: a measurement was killed; even this may need more memory than there is") from None


def training_memory(
    probed: Probed, examples: Sequence[Example], settings: Optimisation, seed: int, free: float = math.inf
) -> tuple[TrainerMemory, float | None]:
    """Peak memory of ``pipeline.training.train.train``, and how many tokens a second it trains on.

    If not even a few layers fit into ``free`` bytes, nothing is measured: activations are 0 and the rate is None.

    Args:
        probed: the model and the loss.
        examples: the training examples, or ones of the same lengths, with all that the loss reads.
        settings: of the training.
        seed: of the batches.
        free: bytes that the measurement may take.
    """
    few, size = few_examples(examples, settings, seed)
    whole, state = probed.parameters(probed.layers), STATE_BYTES[settings.optimiser]
    few_layers = (probed.layers,) if whole.total <= MEASURED_WHOLE else FEW_LAYERS
    counts = sorted({min(count, probed.layers) for count in few_layers})
    if TrainerMemory(probed.parameters(counts[-1]), 0, probed.beside, state).total > free:
        return TrainerMemory(whole, 0, probed.beside, state), None
    found = [of_several(train_a_little, probed, few, size, settings, count) for count in counts]
    beyond = carried_on(counts, [one.beyond for one in found], probed.layers)
    # More layers are never faster, whatever else kept the machine busy.
    slowest = max(1 / one.tokens_per_second for one in found)
    seconds = max(slowest, carried_on(counts, [1 / one.tokens_per_second for one in found], probed.layers))
    memory = TrainerMemory(whole, round(max(0.0, beyond)), probed.beside, state)
    return memory, 1 / seconds


def of_several(work: Callable[P, Measured], *args: P.args, **named: P.kwargs) -> Measured:
    """Run ``REPEATED`` processes that do the same; return the largest memory and the best rate.

    An allocator finds room for the same steps in several ways, up to a tenth apart; a run must fit in any of them.
    """
    found = [apart(work, *args, **named) for _ in range(REPEATED)]
    return Measured(max(one.beyond for one in found), max(one.tokens_per_second for one in found))


def scoring_memory(probed: Probed, lengths: tuple[int, int], tokens: int, settings: Optimisation) -> int:
    """Bytes that a pass without gradient holds besides the weights.

    Args:
        probed: the model.
        lengths: tokens of prompt and response of a sequence.
        tokens: total tokens of the pass.
        settings: of the training; the pass has its dtype.
    """
    length = sum(lengths)
    found = []
    for few in FEW_TOKENS:
        # Prompts differ; equal ones would be computed only once.
        count = max(1, min(few, tokens) // length)
        texts = [Example.text(str(i), (i % 97, *[1] * (lengths[0] - 1)), (1,) * lengths[1]) for i in range(count)]
        found.append((count * length, apart(score_a_little, probed, texts, settings)))
    places, values = zip(*dict(found).items(), strict=True)
    return round(max(0.0, carried_on(places, values, max(tokens, length))))
