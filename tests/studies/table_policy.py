"""A policy that is a table, for studies whose right answer can be worked out, and the exact quantities of its world.

Two ways to train it, both with the production losses: ``minimise`` finds the minimum of a loss over a whole population
of pairs in float64; ``trained_table`` is the production trainer (``pipeline.training.train``) on sampled examples,
which sees the table as a language model of one-token answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from pipeline.config import Optimisation
from pipeline.losses import GroupBatch, Loss, PairBatch, Side
from pipeline.losses.loss import LossOutput
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.reference import reference_logps, with_references
from pipeline.training.train import Trainee, TrainResult, train


@dataclass(frozen=True)
class World:
    """X prompts with Y answers each; preferences are Bradley-Terry's of the rewards.

    Attributes:
        reference: [X, Y] log-probabilities.
        rewards: [X, Y].
    """

    reference: Tensor
    rewards: Tensor

    def tilt(self, strength: float) -> Tensor:
        """[X, Y] log π_ref e^(strength r) / Z, the policy of most reward at its KL."""
        return (self.reference + strength * self.rewards).log_softmax(1)

    def kl(self, policy: Tensor) -> Tensor:
        """[X] KL(π ‖ π_ref), nats."""
        return (policy.exp() * (policy - self.reference)).sum(1)

    def reward(self, policy: Tensor) -> Tensor:
        """[X] expected reward."""
        return (policy.exp() * self.rewards).sum(1)

    def wins(self, policy: Tensor) -> Tensor:
        """[X] probability that an answer of the policy is preferred to one of the reference."""
        return torch.einsum("xi,xij,xj->x", policy.exp(), self.preference(), self.reference.exp())

    def preference(self) -> Tensor:
        """[X, Y, Y] P(i is preferred to j)."""
        return torch.sigmoid(self.rewards[:, :, None] - self.rewards[:, None, :])


def random_world(seed: int, prompts: int, answers: int, spread: float = 1.0, peaked: float = 0.5) -> World:
    """Normal rewards of deviation ``spread``, and a reference whose logits have deviation ``peaked``; float64."""
    draw = torch.Generator().manual_seed(seed)
    rewards = spread * torch.randn(prompts, answers, generator=draw, dtype=torch.float64)
    logits = peaked * torch.randn(prompts, answers, generator=draw, dtype=torch.float64)
    return World(logits.log_softmax(1), rewards)


def many_worlds(seeds: Sequence[int], prompts: int, answers: int) -> World:
    """One world whose prompts are those of all seeds, in order: prompts do not touch each other."""
    worlds = [random_world(seed, prompts, answers) for seed in seeds]
    return World(torch.cat([w.reference for w in worlds]), torch.cat([w.rewards for w in worlds]))


def total_variation(ours: Tensor, theirs: Tensor) -> Tensor:
    """[X] total variation of two tables of log-probabilities."""
    return 0.5 * (ours.exp() - theirs.exp()).abs().sum(1)


def every_pair(prompts: int, answers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt, first and second answer of every pair i < j of every prompt, [N] each."""
    pairs = list(combinations(range(answers), 2))
    first, second = (torch.tensor([pair[k] for pair in pairs]).repeat(prompts) for k in (0, 1))
    return torch.arange(prompts).repeat_interleave(len(pairs)), first, second


def compared(world: World, policy: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` comparisons of each prompt's sampled answers: prompt, chosen, rejected, [X · count] each."""
    prompts = len(policy)
    x = torch.arange(prompts).repeat_interleave(count)
    answers = torch.multinomial(policy.exp(), 2 * count, replacement=True, generator=draw).view(-1, 2)
    told = torch.rand(len(x), generator=draw, dtype=torch.float64)
    won = told < world.preference()[x, answers[:, 0], answers[:, 1]]
    return x, torch.where(won, answers[:, 0], answers[:, 1]), torch.where(won, answers[:, 1], answers[:, 0])


def side(policy: Tensor, references: Sequence[Tensor], x: Tensor, y: Tensor) -> Side:
    """One-token responses ``y`` to prompts ``x`` under tables of log-probabilities."""
    of_references = torch.stack([table[x, y][:, None] for table in references])
    return Side(
        policy=policy[x, y][:, None],
        mask=torch.ones(len(x), 1, dtype=torch.bool),
        reference=of_references if len(references) > 1 else of_references[0],
    )


def pair_batch(
    policy: Tensor, references: Sequence[Tensor], x: Tensor, chosen: Tensor, rejected: Tensor, **facts: Any
) -> PairBatch:
    """Pairs of one-token responses; ``facts`` are fields of ``PairBatch``."""
    return PairBatch(
        chosen=side(policy, references, x, chosen), rejected=side(policy, references, x, rejected), **facts
    )


def group_batch(policy: Tensor, reference: Tensor, x: Tensor, answers: Tensor, rewards: Tensor) -> GroupBatch:
    """Groups of one-token responses, ``answers`` and ``rewards`` [B, K]."""
    return GroupBatch(responses=tuple(side(policy, [reference], x, y) for y in answers.unbind(1)), rewards=rewards)


def minimise(start: Tensor, objective: Callable[[Tensor], Tensor], rounds: int = 8) -> Tensor:
    """The table of log-probabilities, from ``start``, at the minimum of ``objective``, by L-BFGS in float64."""
    logits = start.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective(logits.log_softmax(1))
        value.backward()
        return value

    for _ in range(rounds):
        before = logits.detach().clone()
        optimiser.step(closure)
        if float((logits.detach() - before).abs().max()) < 1e-8:
            break
    return logits.detach().log_softmax(1)


def softmaxed(logits: Tensor) -> Tensor:
    """Log-probabilities of the rows of a table of logits."""
    return logits.log_softmax(1)


def descend(
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    steps: Sequence[int],
    rate: float = 0.05,
    policy_of: Callable[[Tensor], Tensor] = softmaxed,
) -> list[Tensor]:
    """The tables of log-probabilities after each of ``steps`` of Adam in float64 on parameters from ``start`` on."""
    values = start.detach().clone().requires_grad_()
    optimiser, found = torch.optim.Adam([values], lr=rate), []
    for step in range(1, max(steps) + 1):
        optimiser.zero_grad()
        objective(policy_of(values)).backward()
        optimiser.step()
        if step in steps:
            found.append(policy_of(values.detach()))
    return found


def weighted(output: LossOutput, weights: Tensor) -> Tensor:
    """The mean loss of a population in which pair i has the share ``weights[i]``."""
    return (output.per_pair * weights).sum() / weights.sum()


class TableConfig(PretrainedConfig):
    model_type = "study_table"

    def __init__(self, vocab_size: int = 8, **rest: Any) -> None:
        super().__init__(**rest)
        self.vocab_size = self.hidden_size = vocab_size
        self.num_hidden_layers = 1


class TablePolicy(PreTrainedModel):
    """A language model whose next token depends on the last one alone: logits = table[last token]."""

    config_class = TableConfig

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: whoever makes a table fills it."""

    def get_output_embeddings(self) -> None:
        """None: the table is its own head."""

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        logits = self.table[input_ids]
        return CausalLMOutput(logits=logits, hidden_states=(logits,))


def table_of(logits: Tensor) -> TablePolicy:
    """A float32 policy with the next-token ``logits`` [V, V]; −∞ becomes −10⁴, so that differences stay finite."""
    model = TablePolicy(TableConfig(vocab_size=len(logits)))
    with torch.no_grad():
        model.table.copy_(logits.float().clamp(min=-1e4))
    return model.eval()


def bandit_table(policy: Tensor) -> TablePolicy:
    """``policy`` [X, Y] as a language model: prompt x is token x, answer y is token X + y."""
    prompts, answers = policy.shape
    logits = torch.full((prompts + answers, prompts + answers), -1e4, dtype=policy.dtype)
    logits[:prompts, prompts:] = policy
    return table_of(logits)


def of_bandit(model: TablePolicy, prompts: int) -> Tensor:
    """[X, Y] float64 log-probabilities of a ``bandit_table``."""
    return model.table.detach()[:prompts, prompts:].double().log_softmax(1)


def bandit_pair(name: str, prompts: int, x: int, chosen: int, rejected: int, soft_label: float = 1.0) -> Example:
    """A pair of one-token answers."""
    return Example.pair(name, (x,), (prompts + chosen,), (prompts + rejected,), soft_label)


def answer(prompts: int, y: int) -> Continuation:
    """The answer ``y`` as a continuation."""
    return Continuation((prompts + y,))


def trained_table(
    model: TablePolicy,
    examples: Sequence[Example],
    loss: Loss,
    references: Sequence[TablePolicy],
    *,
    seed: int = 0,
    **settings: Any,
) -> TrainResult:
    """Train ``model`` in place with the production trainer, against ``references`` in the loss's order of them."""
    scored = with_references(examples, [reference_logps(reference, examples, 4096) for reference in references])
    asked = {"micro_batch_size": 4096, "micro_batch_tokens": 1 << 20, "warmup": 0.0, "max_grad_norm": 1e9} | settings
    return train(Trainee(model, references[0]), scored, loss, Optimisation.model_validate(asked), seed=seed)
