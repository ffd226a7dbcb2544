"""A user's own reward function, loaded from the file named in the config. Torch-free."""

import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from pipeline.config import FunctionScorer
from pipeline.errors import UserError
from pipeline.types import content_hash
from reward_models.answers.missing import Answer
from reward_models.answers.questions import OnAnswer, Question

Arguments = tuple[object, object, object]


def texts_of(question: Question) -> Arguments:
    """Return prompt, response and answer as a function of texts takes them."""
    prompt = question.prompt
    return [message.plain for message in prompt.messages], question.responses[0].text, prompt.answer


class FunctionReward:
    """An answer source that calls the user's ``def reward(prompt, response, answer)``."""

    def __init__(
        self,
        settings: FunctionScorer,
        field: str = "scorer",
        arguments: Callable[[Question], Arguments] = texts_of,
        takes: str = "(prompt, response, answer)",
    ) -> None:
        """Run the file. Raises ``UserError`` if it cannot be run or lacks the function.

        ``arguments``: what it is called with, and ``takes`` their names.
        """
        self._file = Path(settings.file)
        self._where = f"{field}.file: {self._file}"
        try:
            source = self._file.read_bytes()
        except OSError as error:
            raise UserError(f"{self._where}: cannot be read ({error.strerror})") from None
        self._version = content_hash(["function", source.hex(), settings.name])
        module = self._load(source)
        function = vars(module).get(settings.name)
        if not inspect.isfunction(function):
            named = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
            raise UserError(f"{field}.name: {self._file} has no function {settings.name!r}; it has {named}")
        try:
            inspect.signature(function).bind(None, None, None)
        except TypeError:
            raise UserError(f"{self._where}: {settings.name} must take {takes}") from None
        self._name = settings.name
        self._arguments = arguments
        self._function: Callable[[object, object, object], object] = function

    @property
    def version(self) -> str:
        """Hash of the file's bytes and the function's name, not of what the file imports."""
        return self._version

    def answer(self, questions: Sequence[Question], done: OnAnswer) -> None:
        """Call the function. Raises ``UserError`` that names prompt, response and line if it fails."""
        for index, question in enumerate(questions):
            score = self._score(question)
            done(index, Answer(score, "abstained" if score is None else None))

    def _score(self, question: Question) -> float | None:
        response, asked = question.responses[0].text, question.prompt.messages[-1].content
        place = f"the response {response[:80]!r} to the prompt {asked[:80]!r}"
        given = self._arguments(question)
        try:
            value = self._function(*given)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self._where}{self._line(error)}: {self._name}: {_said(error)}, at {place}") from error
        if value is None:
            return None
        found = _number(value)
        if found is None:
            raise UserError(f"{self._where}: {self._name} gave {_shown(value)}, at {place}; a finite number or None")
        return found

    def _load(self, source: bytes) -> ModuleType:
        # Dataclasses look the module up in sys.modules while it runs, so it needs a name of its own.
        name = f"prefloop_reward_{self._version}"
        module = ModuleType(name)
        module.__file__ = str(self._file)
        sys.modules[name] = module
        try:
            # Compile the hashed bytes; a .pyc file next to them may be older.
            exec(compile(source, str(self._file), "exec"), vars(module))  # noqa: S102 - the user named this file
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UserError(f"{self._where}{self._line(error)}: {_said(error)}") from error
        return module

    def _line(self, error: BaseException) -> str:
        """Return ``:LINE``, the last line of the file in the traceback."""
        if isinstance(error, SyntaxError) and error.lineno is not None:
            return f":{error.lineno}"
        places = (str(self._file), str(self._file.absolute()))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in places]
        return f":{lines[-1]}" if lines else ""


def _number(value: object) -> float | None:
    """Return ``value`` as a float; None if it is no finite number, or beyond what a float holds."""
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001 - a number of 5,000 digits, or a __repr__ of the user's own
        return f"something of type {type(value).__name__}"


def _said(error: BaseException) -> str:
    try:
        text = str(error).splitlines()
    except Exception:  # noqa: BLE001 - the user's own __str__
        text = []
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
