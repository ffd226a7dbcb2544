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
    the largest prompt. If one prompt has more than half of the examples, its own take the others' in turn. A window
    with one prompt takes responses of an earlier window; the first one is as long as it takes to hold two prompts. Only
    data with a single prompt keep their own responses.
    """
    held: list[Example] = []
    earlier: list[Example] = []
    mixed = False
    for example in examples:
        held.append(example)
        mixed = mixed or example.prompt_ids != held[0].prompt_ids
        # The last window has at least WINDOW examples, unless there are fewer in all.
        if len(held) >= 2 * WINDOW and mixed:
            size = WINDOW if earlier or len(_of_two_prompts(held[:WINDOW])) == 2 else len(held)
            window, held = held[:size], held[size:]
            yield from _exchanged(window, earlier)
            found = _of_two_prompts(window)
            earlier = found if len(found) == 2 else earlier
    yield from _exchanged(held, earlier)


def _of_two_prompts(examples: Sequence[Example]) -> list[Example]:
    """The first example, and the first with another prompt if there is one."""
    other = next((e for e in examples if e.prompt_ids != examples[0].prompt_ids), None)
    return [examples[0]] if other is None else [examples[0], other]


def _exchanged(examples: Sequence[Example], earlier: Sequence[Example]) -> Iterator[Example]:
    prompts = {e.prompt_ids: content_hash([e.prompt_ids, "mismatched"]) for e in examples}
    order = sorted(range(len(examples)), key=lambda i: (prompts[examples[i].prompt_ids], examples[i].id))
    step = max(Counter(e.prompt_ids for e in examples).values(), default=0)
    source: dict[int, Example] = {}
    others: dict[tuple[int, ...], list[Example]] = {}
    for place, index in enumerate(order):
        moved, prompt = examples[order[(place + step) % len(order)]], examples[index].prompt_ids
        if moved.prompt_ids == prompt:
            if prompt not in others:
                near = [examples[i] for i in order if examples[i].prompt_ids != prompt]
                others[prompt] = near or [e for e in earlier if e.prompt_ids != prompt] or [examples[index]]
            moved = others[prompt][place % len(others[prompt])]
        source[index] = moved
    for index, example in enumerate(examples):
        ids = source[index].responses[0].ids
        yield replace(example, mismatched=Continuation(ids)) if example.kind == "unpaired" else example
