"""Prompt for a judge: a jinja2 template around fenced texts. Torch-free.

The judged model writes the responses, and may learn to address its judge. So every text is fenced by lines with a mark
that it cannot contain, and control tokens in it are broken up.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined

from pipeline.config import JudgeScorer
from pipeline.errors import UserError
from pipeline.models.rendering.sandbox import LimitedSandbox, render_limited
from pipeline.types import Message, Prompt, Response, content_hash
from reward_models.answers.questions import Question

_OWN = {mode: Path(__file__).with_name(f"{mode}.jinja") for mode in ("pairwise", "pointwise")}
_GRADED = Path(__file__).with_name("pairwise_graded.jinja")
LONGEST_TEMPLATE = 200_000  # characters
# Chat templates of common model families write turns with these. A server's tokenizer reads them as control tokens
# anywhere, so a response could end the user's turn and begin another.
CONTROL = re.compile(
    r"<(?=[|｜][^<>]{0,40}[|｜]>)|<(?=/?s>)|<(?=(?:start|end)_of_(?:turn|image)>)|<(?=(?:bos|eos|pad|unk)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])|<(?=</?SYS>>)",
    re.IGNORECASE,
)
BREAK = "\u200b"


def without_control_tokens(text: str) -> str:
    """Insert an invisible space into everything in ``text`` that looks like a control token, such as `<|im_end|>`."""
    return CONTROL.sub(lambda found: found[0] + BREAK, text)


class JudgeTemplate:
    """A template for questions, read from the user's file or from our own.

    Attributes:
        source: the template's text, which is part of the labels' version.
    """

    def __init__(self, file: Path, field: str) -> None:
        """Read the template. Raises ``UserError`` that names file and line if it cannot be used."""
        self.field = f"{field}.template: {file}"
        try:
            self.source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UserError(f"{self.field}: cannot be read ({reason})") from None
        if len(self.source) > LONGEST_TEMPLATE:
            raise UserError(f"{self.field}: {len(self.source)} characters; at most {LONGEST_TEMPLATE}")
        environment = LimitedSandbox(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = environment.from_string(self.source)
        except Exception as error:  # whatever the template's compiler stumbles over
            raise UserError(f"{self.field}: {_line(error)}{error}") from error

    def render(self, values: dict[str, object]) -> str:
        """Return the template's text with ``values``. Raises ``UserError`` if it fails."""
        try:
            return render_limited(self._template, values)
        except Exception as error:  # a template may raise anything, such as RecursionError
            raise UserError(f"{self.field}: {_line(error)}{error}") from error


class JudgePrompt:
    """Render the text of a question.

    Attributes:
        source: the template's text, which is part of the labels' version.
    """

    def __init__(self, settings: JudgeScorer, field: str) -> None:
        """Read and try the template. Raises ``UserError`` that names file and line if it cannot be used.

        The user's template is asked about criteria too; ours have one of their own for them.
        """
        self._settings = settings
        own = _GRADED if settings.verdict == "graded" else _OWN[settings.mode]
        file = Path(settings.template) if settings.template is not None else own
        self._template = self._of_criterion = JudgeTemplate(file, field)
        self.source = self._template.source
        if settings.rubric and settings.template is None:
            self._of_criterion = JudgeTemplate(file.with_name(f"{settings.mode}_criterion.jinja"), field)
            self.source += self._of_criterion.source
        self._try("")
        if settings.rubric:
            self._try("criterion-2718")

    def render(self, question: Question) -> str:
        """Return the question's whole text. Raises ``UserError`` if the template fails."""
        texts = [response.text for response in question.responses]
        answer, criterion = question.prompt.answer, question.prompt.criterion
        mark = unused_mark(question.prompt.shown, [*texts, answer or "", *([criterion] if criterion else [])])
        values: dict[str, object] = {
            "mark": mark,
            "conversation": fenced("CONVERSATION", _turns(question.prompt.shown), mark),
            "answer": None if answer is None else fenced("EXPECTED", answer, mark),
            "criterion": fenced("CRITERION", criterion, mark) if criterion else None,
            "verdict": self._settings.verdict,
            "low": self._settings.scale[0],
            "high": self._settings.scale[1],
        }
        names = ["response"] if len(texts) == 1 else ["response_a", "response_b"]
        for name, text in zip(names, texts, strict=True):
            values[name] = fenced(name.replace("_", " ").upper(), text, mark)
        return (self._of_criterion if criterion else self._template).render(values)

    def content(self, question: Question, text: str) -> str:
        """Return the content of the message: the text alone."""
        return text

    def more_tokens(self, question: Question) -> int:
        """Return 0: there is nothing besides the text."""
        return 0

    def _try(self, criterion: str) -> None:
        """Refuse a template that leaves out a response or the ``criterion``: it would still give labels."""
        words = ("prompt-3141", "first-5926", "second-5358")
        count = 2 if self._settings.mode == "pairwise" else 1
        responses = tuple(Response(word, (), (), "stop") for word in words[1 : count + 1])
        text = self.render(
            Question(Prompt((Message("user", words[0]),), answer="answer-9793", criterion=criterion), responses)
        )
        names = ("response_a", "response_b") if count == 2 else ("response",)
        for name, word in zip(names, words[1:], strict=False):
            if word not in text:
                raise UserError(
                    f"{self._template.field}: does not show {{{{ {name} }}}}; a {self._settings.mode} judge needs it"
                )
        if criterion not in text:
            raise UserError(f"{self._template.field}: does not show {{{{ criterion }}}}; a judge of rubrics needs it")


def unused_mark(messages: Sequence[Message], texts: Sequence[str]) -> str:
    """Return sixteen hexadecimal digits that no text contains; the same texts give the same digits."""
    contents = [*(message.shown for message in messages), *texts]
    attempt = 0
    while any((mark := content_hash([attempt, contents])) in text for text in contents):
        attempt += 1
    return mark


def fenced(name: str, text: str, mark: str) -> str:
    """Return ``text`` between lines with ``mark``, its control tokens broken up."""
    return f"<<<{name} {mark}\n{without_control_tokens(text)}\n{mark} END OF {name}>>>"


def _turns(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}:\n{message.shown}" for message in messages)


def _line(error: Exception) -> str:
    number = getattr(error, "lineno", None)
    return "" if number is None else f"line {number}: "
