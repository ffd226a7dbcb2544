"""Formula answers, compared by math-verify in a separate process. Torch-free.

On an expression made up by a model, sympy may compute for hours or fill the memory, and a Python signal handler
interrupts neither a long power nor a regular expression. So the kernel ends the process when a comparison has used up
its CPU seconds, and another process takes over.
"""

import importlib.metadata
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO

from pipeline.config import MathScorer
from pipeline.errors import RunError, UserError
from pipeline.types import Prompt, content_hash
from reward_models.answers.missing import Answer
from reward_models.answers.questions import OnAnswer, Question

# A delimiter of LaTeX formulas; "\$18" is a price.
_FORMULA = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
MEMORY = 4 << 30
READY = "ready"


class MathReward:
    """An answer source: 1 if the response's final answer is mathematically equal to the prompt's, else 0."""

    def __init__(self, settings: MathScorer, field: str = "scorer") -> None:
        """Raises ``UserError`` if math-verify is not installed."""
        self._seconds = settings.seconds
        packages = ("math-verify", "latex2sympy2_extended", "sympy")
        try:
            versions = [importlib.metadata.version(name) for name in packages]
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(f"{field}: kind math needs math-verify (pip install 'prefloop[math]')") from error
        self._version = content_hash([settings.identity(), versions])

    @property
    def version(self) -> str:
        """Hash of the settings and of the package versions used to compare."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Answer with scores, or ``unparsed`` if the prompt's answer cannot be read as mathematics."""
        readable: dict[str, bool] = {}
        with Verifier(self._seconds) as verifier:
            for index, question in enumerate(questions):
                wanted = required_answer(question.prompt)
                if wanted not in readable:
                    readable[wanted] = verifier.can_read(wanted)
                if readable[wanted]:
                    done(index, Answer(float(verifier.same(wanted, question.responses[0].text))))
                else:
                    done(index, Answer(None, "unparsed"))


def required_answer(prompt: Prompt) -> str:
    """Return the prompt's answer. Raises ``UserError`` if it has no answer."""
    if prompt.answer is None or not prompt.answer.strip():
        shown = repr(prompt.messages[-1].content[:80])
        raise UserError(f"the scorer math needs an answer, but the prompt {shown} has none (columns.answer)")
    return prompt.answer


class Verifier:
    """The comparing process; a comparison that takes too long ends it, and the next one starts another."""

    def __init__(self, seconds: int) -> None:
        """``seconds``: the most CPU time for a comparison. The process starts with the first one."""
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def can_read(self, wanted: str) -> bool:
        """True if the answer can be read as mathematics within the time."""
        return self._ask(wanted, None) is True

    def same(self, wanted: str, text: str) -> bool:
        """True if the final answer of ``text`` equals ``wanted``; False if comparing takes too long."""
        return self._ask(wanted, text) is True

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        if self._process is not None:
            self._end(self._process)

    def _ask(self, wanted: str, text: str | None) -> bool | None:
        """Return the process's answer; None if the process died."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([wanted, text]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = process.stdout.readline()
        if not line:
            self._end(process)
            return None
        answer: bool = json.loads(line)
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", __name__, str(self._seconds)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", process_group=0)
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() != READY:
                code = self._end(self._process)
                raise RunError(f"the scorer math: its process did not start (exit code {code}); its output is above")
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> int:
        self._process = None
        process.kill()
        process.communicate()
        return process.returncode


# ---------------------------------------------------------------- in the process


def read_answer(text: str) -> list[Any]:
    """Parse a prompt's answer as sympy expressions: all of it, or the part after ``####`` or between delimiters."""
    final = text.rpartition("####")[2]
    return read_response(final if _FORMULA.search(final) else f"${final.strip()}$")


def read_response(text: str) -> list[Any]:
    """Parse a response's final answer: after ``####``, in the last ``\\boxed``, else the last formula or number."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found: list[Any] = parse(text.rpartition("####")[2], kinds, parsing_timeout=None)
    return found


def main() -> None:
    """Answer lines ``[answer, response or null]`` with true or false, until the input ends."""
    from math_verify import verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # math-verify warns that its own time limit is off.
    logging.disable(logging.CRITICAL)
    read = lru_cache(maxsize=1)(read_answer)
    seconds = float(sys.argv[1])
    with _own_stdout() as answers:
        print(READY, file=answers, flush=True)
        for line in sys.stdin:
            wanted, text = json.loads(line)
            # No handler, so the kernel ends the process; CPU time, so a busy machine changes no label.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            if text is None:
                answer = any(not isinstance(expression, str) for expression in read(wanted))
            else:
                answer = verify(read(wanted), read_response(text), timeout_seconds=None)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(bool(answer)), file=answers, flush=True)


def _own_stdout() -> TextIO:
    """Return the real standard output; send everything else, such as prints by parsers, to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
