"""A judge's reply as P(the first is better), or as a score. Torch-free.

The last line that holds a verdict counts. Decoration around its words is allowed; other words are not, except the
usual ones ("Final verdict", "Response A").
"""

import math
import re
from collections.abc import Mapping

from pipeline.config import JudgeScorer
from reward_models.answers.missing import Answer
from reward_models.judge.replies import ChatReply

# Possessive, so that long runs of spaces cost no more than one pass.
_DECORATION = r"[ \t\r*_`\"'\[\](){}<>.:：#|–—-]*+"
_BEFORE = r"(?:(?:so|thus|hence|therefore),?[ \t]++)?(?:(?:my|the|our)[ \t]++)?(?:(?:final|overall)[ \t]++)?"
_CALLED = r"(?:(?:response|answer|assistant|option|candidate|model|output)[ \t*_`\"']++)?"
_WRAPPED = r"(?:\\boxed|\\text)?"
_VERDICT = re.compile(
    rf"^{_DECORATION}{_BEFORE}verdict(?:[ \t]++is)?{_DECORATION}(?:\n{_DECORATION}){{0,2}}{_WRAPPED}{_DECORATION}"
    rf"(?:{_CALLED}{_DECORATION}\b(a|b)\b(?:{_DECORATION}(?:is better|wins))?|(tie|none)\b){_DECORATION}$",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = r"-?\d{1,20}(?:\.\d{1,20})?"
_SCORE = re.compile(
    rf"^{_DECORATION}{_BEFORE}score(?:[ \t]++is)?[ \t*_`\"'\[({{:：]*+{_WRAPPED}[ \t*_`\"'\[({{]*+"
    rf"(?:({_NUMBER})(?:(?:[ \t]*+/[ \t]*+|[ \t]++out of[ \t]++)(\d{{1,20}}))?|none)[ \t\r*_`\"'\])}}.]*+$",
    re.IGNORECASE | re.MULTILINE,
)
# Arena-Hard's grades (arXiv:2406.11939), its pattern with >> also written the other way round.
_GRADE = re.compile(r"\[\[ {0,4}([AB](?:>>|>|=|<<|<)[AB]) {0,4}\]\]")
GRADES: Mapping[str, float] = {
    "A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B=A": 0.5, "B>A": 0.25, "B>>A": 0.0,
    "B<<A": 1.0, "B<A": 0.75, "A<B": 0.25, "A<<B": 0.0,
}  # fmt: skip
_WINS: Mapping[str, float | None] = {"a": 1.0, "b": 0.0, "tie": 0.5, "none": None}


def read_verdict(reply: ChatReply, settings: JudgeScorer) -> Answer:
    """Read ``reply`` as P(the first is better) or as a score on the scale; else the answer is missing."""
    if settings.verdict == "logprobs":
        if not reply.first:
            return Answer(None, "no_logprobs")
        return _pairwise_mass(reply) if settings.mode == "pairwise" else _mean_digit(reply, settings.scale)
    if settings.verdict == "graded":
        return _graded(reply.text)
    return _pairwise_words(reply.text) if settings.mode == "pairwise" else _marked(reply.text, settings.scale)


def _pairwise_words(text: str) -> Answer:
    said = [(found[1] or found[2]).lower() for found in _VERDICT.finditer(text)]
    if not said:
        return Answer(None, "unparsed")
    value = _WINS[said[-1]]
    return Answer(value, "abstained" if value is None else None)


def _graded(text: str) -> Answer:
    """Read the last grade."""
    said = [GRADES[found] for found in _GRADE.findall(text.upper()) if found in GRADES]
    return Answer(said[-1]) if said else Answer(None, "unparsed")


def _marked(text: str, scale: tuple[int, int]) -> Answer:
    said = [(found[1], found[2]) for found in _SCORE.finditer(text)]
    if not said:
        return Answer(None, "unparsed")
    number, highest = said[-1]
    if number is None:
        return Answer(None, "abstained")
    # 4/10 on a scale from 1 to 5 is on another scale than was asked for.
    if highest is not None and int(highest) != scale[1]:
        return Answer(None, "unparsed")
    value = float(number)
    return Answer(value) if scale[0] <= value <= scale[1] else Answer(None, "unparsed")


def _pairwise_mass(reply: ChatReply) -> Answer:
    first, second = _mass(reply, "A"), _mass(reply, "B")
    return Answer(first / (first + second)) if first + second > 0 else Answer(None, "unparsed")


def _mean_digit(reply: ChatReply, scale: tuple[int, int]) -> Answer:
    masses = {value: _mass(reply, str(value)) for value in range(scale[0], scale[1] + 1)}
    total = sum(masses.values())
    if total <= 0:
        return Answer(None, "unparsed")
    return Answer(sum(value * mass for value, mass in masses.items()) / total)


def _mass(reply: ChatReply, word: str) -> float:
    """Sum the probability of all alternatives that read as ``word``, with or without a space."""
    return math.fsum(math.exp(option.logprob) for option in reply.first if option.token.strip() == word)
