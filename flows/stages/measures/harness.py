"""lm-evaluation-harness on the run's own engine: its tasks ask, the sampler's processes answer.

The tokens are those of the harness's own class for transformers (``HFLM``), so that its numbers are comparable. Answers
are written down as they come: a run that was killed asks only for the rest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline.config import SamplingSettings
from pipeline.errors import UserError
from pipeline.types import derive_seed

# Sequences of one call, between two writes.
TOGETHER = 64
Ranked = list[list[tuple[float, bool]]]


class KeptAnswers:
    """Answers of the engine by what was asked, one JSON line each; a line that a kill tore is left out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        torn = False
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
            try:
                key, value = json.loads(line)
                self._known[str(key)] = value
                torn = not line.endswith(b"\n")
            except (ValueError, TypeError):
                torn = True
        if torn:
            with file.open("ab") as lines:
                lines.write(b"\n")

    def get(self, key: str) -> Any:
        """The answer, or None."""
        return self._known.get(key)

    def add(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Keep answers; they are on disk when this returns."""
        made = dict(answers)
        self._known |= made
        with self._file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps([key, value])}\n" for key, value in made.items())
            lines.flush()
            os.fsync(lines.fileno())


class EngineLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A language model of the harness that is the run's sampler.

    Args:
        tokenizer: of the policy.
        context: longest sequence in tokens that the engine takes.
        score: log-probs of tokens 1..T-1 of sequences, and whether each is the likeliest.
        draw: responses' token ids to prompts' token ids, with settings and seeds, in order as they come.
        kept: answers of an earlier try.
        report: called with the requests done, and all of them.
        seed: of tasks that sample.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: int,
        score: Callable[[Sequence[Sequence[int]]], Ranked],
        draw: Callable[[Sequence[Sequence[int]], SamplingSettings, Sequence[int]], Iterable[Sequence[int]]],
        kept: KeptAnswers,
        report: Callable[[int, int], None],
        seed: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        # One token of an answer is predicted, not read, and the engine keeps room for one more.
        self.max_length = context - 2
        self._score, self._draw, self._kept, self._report, self._seed = score, draw, kept, report, seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the first token of texts, if there is one."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's own caches, which are not used."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as one text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return token ids; a text that begins with the first token of texts does not get it twice."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [*self.tokenizer.encode(string, **given)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; what is too long loses tokens at its beginning."""
        asked = [((*context, *more)[-(self.max_length + 1) :], len(more)) for _, context, more in requests]
        keys = [_hashed(["score", ids, count]) for ids, count in asked]
        missing = dict.fromkeys(key for key in keys if self._kept.get(key) is None)
        wanted = [(key, one) for key, one in zip(keys, asked, strict=True) if key in missing]
        # Neighbours in length share batches; each question is asked once.
        todo = sorted(dict(wanted).items(), key=lambda one: (-len(one[1][0]), one[1][0]))
        for start in range(0, len(todo), TOGETHER):
            part = todo[start : start + TOGETHER]
            rows = self._score([ids for _, (ids, _) in part])
            self._kept.add((key, _summed(row[-count:])) for (key, (_, count)), row in zip(part, rows, strict=True))
            self._report(len(keys) - len(todo) + start + len(part), len(keys))
        return [(float(total), bool(best)) for total, best in map(self._kept.get, keys)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log-likelihoods of whole texts, in windows of the longest context."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in found]
            windows += own
            counts.append(len(own))
        totals = iter(self._loglikelihood_tokens(windows))
        return [sum(next(totals)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return generated texts up to the stop strings; greedy unless the task samples."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

        asked: list[tuple[str, list[int], SamplingSettings, list[str]]] = []
        seen: dict[str, int] = {}
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        for text, given in (request.args for request in requests):
            kwargs = normalize_gen_kwargs(given, 256)
            until = handle_stop_sequences(kwargs.pop("until", None), eos=end)
            settings = _sampling(kwargs, [one for one in until if one and one != end])
            if settings.max_tokens >= self.max_length:
                raise UserError(
                    f"evaluation.suites: a task asks for {settings.max_tokens} tokens, but the context has "
                    f"{self.max_length}; set the suite's context higher"
                )
            ids = self.tok_encode(text)[-(self.max_length - settings.max_tokens) :]
            plain = _hashed(["generate", ids, settings.model_dump(mode="json")])
            seen[plain] = repeat = seen.get(plain, -1) + 1
            asked.append((f"{plain}/{repeat}", ids, settings, until))
        self._generate(asked)
        return [postprocess_generated_text(self._kept.get(key), until, None) for key, _, _, until in asked]

    def _generate(self, asked: Sequence[tuple[str, list[int], SamplingSettings, list[str]]]) -> None:
        todo: dict[SamplingSettings, list[tuple[str, list[int]]]] = {}
        for key, ids, settings, _ in asked:
            if self._kept.get(key) is None:
                todo.setdefault(settings, []).append((key, ids))
        done = len(asked) - sum(map(len, todo.values()))
        for settings, rows in todo.items():
            seeds = [derive_seed(self._seed, "lm_eval", key) for key, _ in rows]
            for (key, _), made in zip(rows, self._draw([ids for _, ids in rows], settings, seeds), strict=True):
                self._kept.add([(key, self.tokenizer.decode([*made], skip_special_tokens=True))])
                done += 1
                self._report(done, len(asked))


def _sampling(kwargs: dict[str, Any], stop: Sequence[str]) -> SamplingSettings:
    """The engine's settings for a task's. Raises ``UserError`` for what it does not have."""
    most, temperature = int(kwargs.pop("max_gen_toks")), float(kwargs.pop("temperature", 0.0))
    if not kwargs.pop("do_sample", False):
        temperature = 0.0
    cuts = {name: kwargs.pop(name) for name in ("top_p", "top_k", "min_p") if name in kwargs}
    if kwargs:
        raise UserError(
            f"evaluation.suites: a task's generation_kwargs has {', '.join(sorted(kwargs))}, which engines lack"
        )
    return SamplingSettings(
        n=1, temperature=temperature, max_tokens=most, stop=tuple(stop), **(cuts if temperature else {})
    )


def _summed(row: Sequence[tuple[float, bool]]) -> list[float | bool]:
    return [sum(logprob for logprob, _ in row), all(best for _, best in row)]


def _hashed(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
