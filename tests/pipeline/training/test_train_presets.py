"""Every named loss trains: what it prefers becomes likelier against what it does not."""

import pytest
import torch

from pipeline.losses import preset_names
from pipeline.training.batches.examples import Example
from pipeline.training.reference import reference_logps
from tests.support.loss_examples import examples_for, loss_named, settings
from tests.support.tiny_training import tiny_llama, trained


def margins(model: torch.nn.Module, examples: list[Example]) -> float:
    """Mean over examples of log-probability a token of the better response less that of the worse one."""
    total = 0.0
    for example, logps in zip(examples, reference_logps(model, examples), strict=True):
        means = [sum(values) / len(values) for values in logps[: len(example.responses)]]
        match example.kind:
            case "unpaired":
                total += means[0] if example.desirable else -means[0]
            case "group":
                rewards = [c.reward or 0.0 for c in example.responses]
                total += means[rewards.index(max(rewards))] - means[rewards.index(min(rewards))]
            case _:
                total += means[0] - means[1]
    return total / len(examples)


# Of the likelihood alone; and DiscoPOP's loss rises with the margin where training starts, at 0.
OTHERS = {"sft", "discopop"}


@pytest.mark.parametrize("name", sorted(set(preset_names()) - OTHERS))
def test_every_preset_raises_the_margin(name: str) -> None:
    loss = loss_named(name)
    start = tiny_llama()
    references = [start, tiny_llama(seed=1)][: max(1, loss.needs.references)]
    examples = examples_for(loss, 8, *references)
    model = tiny_llama()
    before = margins(model, examples)
    optimisation = settings(batch_size=8, micro_batch_size=8, epochs=10.0, learning_rate=3e-3)
    result = trained(model, examples, loss, optimisation, seed=0, reference=start, starts_at_reference=True)
    assert result.history[0].grad_norm > 0
    assert margins(model, examples) > before + 0.05
