"""Losses of games between policies: their formulas, and rock, paper and scissors by exact enumeration."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from pipeline.losses import Loss, PairBatch, Side, load_preset
from tests.support.loss_batches import Pair, assert_same, pairs_of, random_pairs


def of_model(x: Pair, model: int) -> Tensor:
    """log π_k(y_w) − log π_k(y_l) of reference k."""
    return x.w.refs[model].sum() - x.v.refs[model].sum()


def of_policy(x: Pair) -> Tensor:
    return x.w.p.sum() - x.v.p.sum()


def inpo(tau: float, eta: float) -> Callable[[Pair], Tensor]:
    def formula(x: Pair) -> Tensor:
        mixed = tau / eta * of_model(x, 1) + (1 - tau / eta) * of_model(x, 0)
        return (of_policy(x) - mixed - 1 / (2 * eta)) ** 2

    return formula


def egpo(beta: float, eta: float) -> Callable[[Pair], Tensor]:
    def formula(x: Pair) -> Tensor:
        mixed = beta * eta * of_model(x, 1) + (1 - beta * eta) * of_model(x, 0)
        return (of_policy(x) - mixed - eta * (x.of("win_probability") - 0.5)) ** 2

    return formula


def ipo_soft(beta: float) -> Callable[[Pair], Tensor]:
    return lambda x: (x.d - (x.of("win_probability") - 0.5) / beta) ** 2


def ipo_of_averages(beta: float) -> Callable[[Pair], Tensor]:
    return lambda x: (x.d - (x.of("win_probability") - x.of("win_probability_rejected")) / beta) ** 2


def mixed(*weights: float) -> dict[str, object]:
    return {"kind": "mixture", "mean": "geometric", "weights": weights}


@pytest.mark.parametrize(
    ("name", "given", "formula"),
    [
        ("inpo", {}, inpo(0.0025, 0.0075)),
        ("inpo", {"beta": 0.4, "prior": mixed(0.75, 0.25)}, inpo(0.1, 0.4)),
        ("egpo", {}, egpo(0.0025, 1 / 0.0075)),
        ("egpo", {"beta": 0.5, "prior": mixed(0.8, 0.2)}, egpo(0.1, 2.0)),
        ("ipo_soft", {}, ipo_soft(0.1)),
        ("ipo_soft", {"beta": 0.7}, ipo_soft(0.7)),
        ("ipo_soft", {"beta": 0.7, "against": "average"}, ipo_of_averages(0.7)),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_value_and_gradient_are_the_published_formula(
    name: str, given: dict[str, object], formula: Callable[[Pair], Tensor]
) -> None:
    batch = random_pairs(2, references=2)
    expected = torch.stack([formula(x) for x in pairs_of(batch)])
    assert_same(load_preset(name, **given)(batch).per_pair, expected, batch)


# ---------------------------------------------------------------- rock, paper, scissors

# P(row beats column): each of three answers beats one of the others, by differing chances.
BEATS = torch.tensor([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]], dtype=torch.float64)
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
TAU, ETA, ROUNDS = 0.1, 0.3, 20


def equilibrium() -> Tensor:
    """The policy that is its own best answer at KL cost τ, by damped iteration, without any loss."""
    found = START
    for _ in range(3000):
        answer = best_answer(found)
        found = (0.98 * found.log() + 0.02 * answer.log()).softmax(0)
    return found


def best_answer(policy: Tensor) -> Tensor:
    return (START.log() + BEATS @ policy / TAU).softmax(0)


def duality_gap(policy: Tensor) -> float:
    """What either player of the regularised game gains by the best answer, both added up."""

    def worth(one: Tensor) -> Tensor:
        return one @ BEATS @ policy - TAU * kl(one, START)

    return 2 * float(worth(best_answer(policy)) - worth(policy))


def kl(one: Tensor, other: Tensor) -> Tensor:
    return (one * (one.log() - other.log())).sum()


PAIRS = [(i, j) for i, j in product(range(3), range(3)) if i != j]


def enumerated(logits: Tensor, *references: Tensor) -> PairBatch:
    """Every ordered pair of answers, of one token each, with the chance that the first wins."""
    logps = logits.log_softmax(0)

    def side(place: int) -> Side:
        answers = [pair[place] for pair in PAIRS]
        stacked = torch.stack([model.log()[answers].unsqueeze(1) for model in references])
        return Side(policy=logps[answers].unsqueeze(1), mask=torch.ones(6, 1, dtype=torch.bool), reference=stacked)

    wins = torch.tensor([BEATS[i, j] for i, j in PAIRS], dtype=torch.float64)
    return PairBatch(chosen=side(0), rejected=side(1), win_probability=wins)


def next_policy(loss: Loss, policy: Tensor, rates: Tensor, *references: Tensor) -> Tensor:
    """The minimum of the loss over all policies; ``rates`` [6]: how often each pair comes with the first as chosen."""
    logits = policy.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = (rates * loss(enumerated(logits, *references)).per_pair).sum()
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach().softmax(0)


def labelled(policy: Tensor) -> Tensor:
    """How often a pair of the policy's own answers comes with the first as the better one."""
    return torch.stack([policy[i] * policy[j] * BEATS[i, j] for i, j in PAIRS])


def course(step: Callable[[Tensor], Tensor]) -> list[Tensor]:
    policies = [START]
    for _ in range(ROUNDS):
        policies.append(step(policies[-1]))
    return policies


@pytest.mark.parametrize("name", ["inpo", "egpo"])
def test_the_last_policy_is_the_equilibrium_of_the_regularised_game(name: str) -> None:
    loss = load_preset(name, beta=ETA, prior=mixed(1 - TAU / ETA, TAU / ETA))

    def step(policy: Tensor) -> Tensor:
        # EGPO reads the chance to win where INPO reads labels, so that either order of a pair is as frequent.
        both = torch.stack([policy[i] * policy[j] for i, j in PAIRS])
        return next_policy(loss, policy, labelled(policy) if name == "inpo" else both, policy, START)

    policies = course(step)
    gaps = [duality_gap(policy) for policy in policies]
    assert kl(equilibrium(), policies[-1]) < 1e-2 and gaps[-1] < 1e-3 * gaps[0]
    assert all(later < earlier for earlier, later in pairwise(gaps[::5]))
    # The exact step of mirror descent, written out.
    exact = (BEATS @ START / ETA + TAU / ETA * START.log() + (1 - TAU / ETA) * START.log()).softmax(0)
    torch.testing.assert_close(policies[1], exact, rtol=1e-5, atol=1e-6)


def test_without_the_start_in_the_prior_self_play_cycles() -> None:
    loss = load_preset("ipo", beta=ETA)
    policies = course(lambda policy: next_policy(loss, policy, labelled(policy), policy))
    leaders = [int(policy.argmax()) for policy in policies]
    assert sum(one != other for one, other in pairwise(leaders)) >= 3
    assert kl(equilibrium(), policies[-1]) > 0.5 and duality_gap(policies[-1]) > duality_gap(START)


def test_a_fixed_reward_model_leads_to_one_answer() -> None:
    """Best against worst by the chance to beat the start: what a reward model learns from the start's own pairs."""
    rewards = BEATS @ START
    loss = load_preset("dpo", beta=ETA, label={"kind": "smoothed", "epsilon": 0.1})
    best, worst = int(rewards.argmax()), int(rewards.argmin())
    rates = torch.tensor([float(pair == (best, worst)) for pair in PAIRS], dtype=torch.float64)
    policies = course(lambda policy: next_policy(loss, policy, rates, policy))
    assert policies[-1].max() > 0.95 or kl(equilibrium(), policies[-1]) > 0.5
    assert duality_gap(policies[-1]) > duality_gap(START)
