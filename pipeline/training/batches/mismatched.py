"""Responses to other prompts, from which KTO estimates KL(π ‖ π_ref) (arXiv:2402.01306, section 4.1).

The published code shifts the responses of a shuffled batch by one, so that each is used once. Here each is used once
too, and which goes with which depends on what the examples hold, not on their order in the file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pipeline.training.batches.examples import Continuation, Example
from pipeline.types import content_hash

# Examples that exchange responses with each other; up to twice as many are in memory.
WINDOW = 1024


def with_mismatched(examples: Iterable[Example]) -> Iterator[Example]:
    """Give each single response the response to another prompt; each serves once. Other examples stay as they are.

    Within a window, examples are laid out prompt by prompt in the order of a hash, and responses move on by the size of
    the largest prompt. If one prompt has more than half of the examples, its own take the others' in turn, and a window
    with one prompt keeps its own responses.
    """
    held: list[Example] = []
    for example in examples:
        held.append(example)
        # The last window has at least WINDOW examples, unless there are fewer in all.
        if len(held) == 2 * WINDOW:
            yield from _exchanged(held[:WINDOW])
            held = held[WINDOW:]
    yield from _exchanged(held)


def _exchanged(examples: Sequence[Example]) -> Iterator[Example]:
    prompts = {e.prompt_ids: content_hash([e.prompt_ids, "mismatched"]) for e in examples}
    order = sorted(range(len(examples)), key=lambda i: (prompts[examples[i].prompt_ids], examples[i].id))
    step = max(Counter(e.prompt_ids for e in examples).values(), default=0)
    source: dict[int, int] = {}
    for place, index in enumerate(order):
        moved = order[(place + step) % len(order)]
        if examples[moved].prompt_ids == examples[index].prompt_ids:
            others = [i for i in order if examples[i].prompt_ids != examples[index].prompt_ids] or [index]
            moved = others[place % len(others)]
        source[index] = moved
    for index, example in enumerate(examples):
        ids = examples[source[index]].responses[0].ids
        yield replace(example, mismatched=Continuation(ids)) if example.kind == "unpaired" else example
