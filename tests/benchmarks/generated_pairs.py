"""Prompts with two or more responses, of random tokens, whose lengths are spread as in dialogue data."""

import math
import random
from dataclasses import dataclass
from statistics import NormalDist

# Standard deviation of the logarithm of a length. Of words in PandaLM's human-rated test set it is 0.6 for instructions
# and 1.3 for responses.
SPREAD = 1.0
# The longest prompt or response, in means.
LONGEST = 4
# 0 to 2 are padding, start and end.
FIRST_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Token ids of a prompt and its responses."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


def generate_pairs(count: int, prompt: float, response: float, vocabulary: int, seed: int) -> list[Pair]:
    """``generate_groups`` of two responses."""
    return [Pair(g.prompt, *g.responses) for g in generate_groups(count, 2, prompt, response, vocabulary, seed)]


def generate_groups(count: int, size: int, prompt: float, response: float, vocabulary: int, seed: int) -> list[Group]:
    """``count`` prompts with ``size`` responses each, of log-normal lengths, cut at ``LONGEST`` times the mean.

    The lengths are quantiles of the distribution in random order, so that their means do not depend on ``count`` or on
    luck: they are ``prompt`` and ``response`` to a fraction of a token.
    """
    draw = random.Random(f"{seed} {count} {prompt} {response}")
    prompts = _lengths(count, prompt, draw)
    answers = iter(_lengths(size * count, response, draw))

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(FIRST_TOKEN, vocabulary), k=length))

    return [Group(tokens(length), tuple(tokens(next(answers)) for _ in range(size))) for length in prompts]


def room_for_rows(prompt: float, response: float) -> int:
    """Positions that any prompt with one of its responses fits into."""
    return math.ceil((LONGEST + 1) * (prompt + response))


def _lengths(count: int, mean: float, draw: random.Random) -> list[int]:
    normal = NormalDist()
    longest = LONGEST * math.exp(SPREAD**2 / 2)
    shape = [min(math.exp(SPREAD * normal.inv_cdf((i + 0.5) / count)), longest) for i in range(count)]
    # The cut takes from the mean, so the scale is told from the values as they are.
    scale = mean * count / sum(shape)
    lengths = [max(1, round(scale * value)) for value in shape]
    draw.shuffle(lengths)
    return lengths
