"""Metrics of responses to held-out prompts: reward, win rate, length, variety, slot errors.

Torch-free; KL needs models and is in ``reference``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from pipeline.errors import RunError
from pipeline.evaluation.intervals import Interval, rate_interval, smooth_interval
from pipeline.types import Group, Response

REPEATED_WORDS = 4
# The measures of ``SampleCounts.thinking``.
THINKING = ("thinking_tokens", "answer_tokens", "thought_rate", "unfinished_thinking_rate")


def win_rate(groups: Iterable[Group], others: Iterable[Group]) -> Interval:
    """Return the share of comparisons that ``groups`` win against ``others`` on the same prompt; ties count half.

    Raises:
        RunError: no prompt is left to compare.
    """
    return rate_interval([*wins_by_score(groups, others).values()])


def wins_by_score(groups: Iterable[Group], others: Iterable[Group]) -> dict[str, float]:
    """Return, by prompt id, the share of comparisons that ``groups`` win against ``others``; ties count half.

    Every scored response of one side is compared with every one of the other; a prompt that only one side has, or that
    lacks scores on one side, does not count.
    """
    theirs = {group.prompt.id: _scores(group) for group in others}
    rates = {}
    for group in groups:
        ours, against = _scores(group), theirs.get(group.prompt.id, [])
        points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in against]
        if points:
            rates[group.prompt.id] = sum(points) / len(points)
    return rates


def describe_responses(groups: Iterable[Group]) -> dict[str, float]:
    """Return means over all responses of scored or unscored ``groups``.

    Lengths and words are those of what labellers see (``chat.thinking``). ``reward`` (over scored responses; absent
    without any), ``response_length`` (tokens, including the end token), ``stop_rate`` (share that ended by themselves),
    ``distinct_1`` and ``distinct_2`` (distinct word n-grams divided by all word n-grams, Li et al. 2016,
    arXiv:1510.03055), ``repetition_rate`` (share that repeat four words in a row).
    """
    counted = list(groups)
    responses = [response for group in counted for response in group.responses]
    if not responses:
        raise RunError("nothing to describe: no responses")
    words = [response.text.split() for response in responses]
    metrics = {
        "response_length": sum(len(r.shown_ids) for r in responses) / len(responses),
        "stop_rate": sum(r.finish_reason == "stop" for r in responses) / len(responses),
        "distinct_1": distinct_ngrams(words, 1),
        "distinct_2": distinct_ngrams(words, 2),
        "repetition_rate": sum(repeats(said) for said in words) / len(responses),
    }
    scores = [score for group in counted for score in _scores(group)]
    if scores:
        metrics["reward"] = sum(scores) / len(scores)
    return metrics


class SampleCounts:
    """Counts over sampled responses, one by one."""

    def __init__(self) -> None:
        self.responses = self.tokens = self._stopped = self._thinking = self._thoughts = self._unfinished = 0
        self._logprob = 0.0

    def add(self, response: Response) -> None:
        """Count one more."""
        self.responses += 1
        self.tokens += len(response.token_ids)
        self._stopped += response.finish_reason == "stop"
        if response.thinking_tokens:
            self._thinking += response.thinking_tokens
            self._thoughts += 1
        self._unfinished += response.in_thought
        self._logprob += sum(response.logprobs)

    @property
    def measures(self) -> dict[str, int | float]:
        """Numbers of responses and of their tokens, the share that ended by itself, and the mean log-probability."""
        return {
            "responses": self.responses,
            "tokens": self.tokens,
            "stop_rate": self._stopped / max(self.responses, 1),
            "logprob_per_token": self._logprob / max(self.tokens, 1),
        }

    @property
    def thinking(self) -> dict[str, float]:
        """How responses think, over all of them.

        ``thinking_tokens`` and ``answer_tokens`` (means; together all tokens), ``thought_rate`` (share that open with a
        thought), ``unfinished_thinking_rate`` (share that ended inside it). Raises ``RunError`` without any response.
        """
        if not self.responses:
            raise RunError("nothing to describe: no responses")
        totals = (self._thinking, self.tokens - self._thinking, self._thoughts, self._unfinished)
        return dict(zip(THINKING, (total / self.responses for total in totals), strict=True))


def distinct_ngrams(texts: Iterable[Sequence[str]], n: int) -> float:
    """Return distinct n-grams divided by all n-grams of ``texts`` (lists of words); 0 without any."""
    counts = Counter(gram for words in texts for gram in grams(words, n))
    return len(counts) / counts.total() if counts else 0.0


def _scores(group: Group) -> list[float]:
    return [score for score in group.scores if score is not None]


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of ``n`` words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def repeats(words: Sequence[str]) -> bool:
    """Return whether any four words in a row occur more than once, ignoring case and punctuation."""
    runs = grams([word.lower().strip(".,;!?") for word in words], REPEATED_WORDS)
    return len(set(runs)) < len(runs)


def per_token(logps: Sequence[tuple[float, ...]]) -> float:
    """Return the mean log-prob over all tokens of all sequences; 0 without tokens."""
    return sum(map(sum, logps)) / max(sum(map(len, logps)), 1)


def kl_interval(
    sampled: Sequence[Group],
    ours: Sequence[tuple[float, ...]],
    theirs: Sequence[tuple[float, ...]],
    resamples: int,
    seed: int,
) -> Interval | None:
    """Return KL(policy ‖ other) in nats per token over all responses, with its interval over prompts.

    Responses to one prompt resemble each other, so prompts are resampled, with all their responses.

    Args:
        sampled: the policy's responses.
        ours, theirs: for each of them, in order, the log-prob of every token under policy and other.
        resamples, seed: of the bootstrap.

    Returns:
        None without tokens.
    """
    pairs = zip(ours, theirs, strict=True)
    rows = [[*islice(pairs, len(group.responses))] for group in sampled]
    found = [(sum(sum(own) - sum(other) for own, other in row), sum(len(own) for own, _ in row)) for row in rows]
    columns = np.array(found, dtype=np.float64).reshape(-1, 2)
    if not columns[:, 1].any():
        return None
    return smooth_interval(columns, lambda means: means[..., 0] / means[..., 1], resamples, seed)


def sampler_gap(sampled: Sequence[Group], own: Sequence[tuple[float, ...]]) -> float | None:
    """Return the mean absolute difference, in nats, of sampler and trainer log-probs of the same sampled tokens."""
    said = [logprob for group in sampled for response in group.responses for logprob in response.logprobs]
    found = [logprob for sequence in own for logprob in sequence]
    if len(said) != len(found) or not said:
        return None
    return sum(abs(a - b) for a, b in zip(said, found, strict=True)) / len(said)


def pair_accuracy(margins: Iterable[float]) -> list[float]:
    """Return 1 for each positive margin, 1/2 at 0, else 0."""
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
