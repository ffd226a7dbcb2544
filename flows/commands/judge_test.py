"""``prefloop judge-test``: three questions to each judge of a config, to see that it answers as wanted. Torch-free.

The questions are about the first prompt of the data: an answer that speaks of it, one that does not, and the two of
them alike or in the other order. Nothing is kept, and a budget holds for these questions alone.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from flows.run_folder.specs.suite_keys import suite_place
from pipeline.config import JudgeScorer, RunConfig, scorers_of
from pipeline.config.evaluation.suites import suite_judge
from pipeline.config.files import load_config
from pipeline.data.reading import read_prompts, values
from pipeline.data.sources import prompt_source
from pipeline.errors import UserError
from pipeline.safe_text import visible
from pipeline.types import Prompt, Response
from pipeline.types.counts import number_of
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.questions import Question
from reward_models.answers.spending import Ledger
from reward_models.judge.judge import Judge

_OFF_TOPIC = "Bananas are yellow, and the train leaves at noon."
_LONGEST = 4000


def ask_judges(files: list[Path], settings: list[str]) -> bool:
    """Ask each judge of a config, and print requests, replies, verdicts and cost; return whether all gave verdicts.

    Raises ``UserError`` if the config has no judge of texts, its data has no prompt, or a server refuses.
    """
    config = load_config(files, settings)
    judges = [*_judges(config)]
    if not judges or config.modality != "text":
        raise UserError("scorer.kind: judge-test asks judges of texts, and this config has none; allowed: judge")
    prompt = _first_prompt(config)
    if config.secrets:
        from flows.prefect_api.secret_blocks import provide_secrets

        provide_secrets(config)
    heard = [_ask(field, judge, prompt) for field, judge in judges]
    return all(heard)


def _judges(config: RunConfig) -> Iterator[tuple[str, JudgeScorer]]:
    second = None if config.gate is None else config.gate.second
    given = [(suite_judge(suite), f"{suite_place(suite, config)}.judge") for suite in config.evaluation.suites]
    for section, place in ((config.scorer, "scorer"), (second, "gate.second"), *given):
        if section is not None:
            yield from ((name, one) for name, one in scorers_of(section, place) if isinstance(one, JudgeScorer))


def _first_prompt(config: RunConfig) -> Prompt:
    found = next(values(read_prompts(prompt_source(config))), None)
    if found is None:
        raise UserError("prompts: no row holds a prompt to ask about; see prefloop check")
    return found.prompt


def _ask(field: str, settings: JudgeScorer, prompt: Prompt) -> bool:
    """Ask one judge; return whether every question got a verdict."""
    with Accounts(LabelCache(None), Ledger(None)) as accounts:
        judge = Judge(settings, accounts, field)
        print(f"{field}: {settings.server.model} at {settings.server.base_url}, {settings.mode}")
        verdicts = []
        for title, question in _questions(settings, prompt):
            started = time.monotonic()
            heard = judge.hear(question)
            verdicts.append(heard.answer.value)
            said = f"none ({heard.answer.missing})" if heard.answer.value is None else f"{heard.answer.value:.4g}"
            _show(title, heard.text, heard.reply, f"{said}, after {time.monotonic() - started:.1f} s")
        spent = accounts.spent()
        tokens = f"{number_of(spent.prompt_tokens, 'token')} in, {spent.completion_tokens:,} out"
        print(f"{number_of(spent.calls, 'call')}, {tokens}, cost {spent.cost:.4g}")
        print(_summary(settings, verdicts))
    return None not in verdicts


def _questions(settings: JudgeScorer, prompt: Prompt) -> list[tuple[str, Question]]:
    asked = prompt.messages[-1].shown
    wanted = prompt.answer or prompt.reference or f"You ask: {asked[:200]} I answer that, step by step."
    good, bad = (Response(text, (), (), "stop") for text in (wanted, _OFF_TOPIC))
    if settings.mode == "pointwise":
        shown = (("an answer to it", good), ("an answer to something else", bad), ("the first again", good))
        return [(title, Question(prompt, (response,))) for title, response in shown]
    pairs = (
        ("A answers it, B does not", (good, bad)),
        ("the other order", (bad, good)),
        ("both alike", (good, good)),
    )
    return [(title, Question(prompt, pair)) for title, pair in pairs]


def _show(title: str, request: str, reply: str, verdict: str) -> None:
    print(f"\n--- {title}\nrequest:")
    print(visible(request[:_LONGEST]))
    print(f"reply: {visible(reply[:_LONGEST])}\nverdict: {verdict}")


def _summary(settings: JudgeScorer, verdicts: list[float | None]) -> str:
    first, second, third = verdicts
    if first is None or second is None or third is None:
        return "Some questions got no verdict: the template, max_tokens or the verdict's form may not suit this model."
    if settings.mode == "pointwise":
        sound = first > second and first == third
        return (
            "It prefers the answer to the question." if sound else "It does not clearly prefer the answer: look above."
        )
    if first > 0.5 > second:
        return "It prefers the answer to the question in both orders."
    if (first > 0.5) == (second > 0.5):
        return "It chooses by position, not by content: pairs asked in both orders will be ties."
    return "It prefers the answer to something else: the verdict may be read the wrong way round."
