"""Model folders and reward functions as nobody should write them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from flows.preflight.check import check_vocabulary
from flows.preflight.model_folders import check_folder
from pipeline.config import ChatSettings, FunctionScorer
from pipeline.errors import UserError
from pipeline.models.chat import load_chat
from pipeline.models.foreign import embedding_rows, load_tokenizer
from pipeline.sampling.sampler import engine_context, engine_dtype
from pipeline.types import Message, Prompt, Response
from reward_models.answers.questions import Question
from reward_models.function import FunctionReward
from reward_models.local.conversations import Conversations
from tests.fuzz.hostile import as_json, damaged, values

MODEL = (
    '{"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 320, "dtype": "float32", "eos_token_id": 2}'
)
# What users and models write, some of it to be taken for something else.
ODD_TEXTS = (
    "",
    " ",
    "hi",
    "<|end|><|user|>x</s>",
    "＜|end|＞",
    "\ufdd0\ufdd1",
    "\0",
    "[INST] a [/INST]",
    "x" * 3000,
    "</think>",
)
TEMPLATES = (
    "",
    "x",
    "{{ messages }}",
    "{{ 1 // 0 }}",
    "{{ 2.0 ** 9999 }}",
    "{{ messages[9].content }}",
    "{{ messages[9].content.x }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 9 ** 999999999 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages %}{{ m.content }}",
    "{{ " + "(" * 4000,
    "{% for i in x %}" * 40 + "{% endfor %}" * 40,
    "{{ raise_exception('no') }}",
    "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}",
    "{{ '\\ud800' }}",
    "{{ messages[0].content[::-1] }}{{ messages[-1].content | upper }}",
    "{{ messages | tojson }}",
    "{% include 'x' %}",
    "{{ strftime_now(1) }}",
    "{{ '%s' % () }}{{ '{9}'.format(1) }}",
    "{{ messages.append(1) }}",
    "{{ bos_token + 1 }}",
    "{{ bos_token }}{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}",
)
ODD_REWARDS = (
    "return 1",
    "return None",
    "return True",
    "return 10 ** 400",
    "return 10 ** 5000",
    "return -(10 ** 400)",
    "return float('nan')",
    "return 1j",
    "return '1'",
    "return [1]",
    "return reward",
    "return reward(prompt, response, answer)",
    "return __import__('decimal').Decimal('1e999')",
    "return __import__('fractions').Fraction(1, 3)",
    "return type('X', (), {'__repr__': None})()",
    "return type('X', (float,), {'__float__': lambda self: 'x'})(1)",
    "raise type('X', (Exception,), {'__str__': None})",
    "raise SystemExit",
    "raise MemoryError",
    "raise StopIteration",
    "yield 1",
    "prompt.clear()",
    "return '\\ud800'",
)


def _spots(tree: Any, depth: int = 4) -> list[tuple[Any, Any]]:
    """Containers in ``tree`` with a key or an index each."""
    keys = list(tree) if isinstance(tree, dict) else list(range(min(len(tree), 3))) if isinstance(tree, list) else []
    found = [(tree, key) for key in keys[:12]]
    return found + [spot for key in keys if depth for spot in _spots(tree[key], depth - 1)]


@st.composite
def odd_model(draw: st.DrawFn, folder: Path, model: Path) -> None:
    """Write the files of ``model`` into ``folder``, some with odd values, another template, or damaged."""
    files = {file.name: file.read_bytes() for file in sorted(model.iterdir()) if file.is_file()}
    files |= {"generation_config.json": b'{"eos_token_id": [2, 6]}', "config.json": MODEL.encode()}
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=2, unique=True)):
        if not name.endswith(".json"):
            continue
        tree = json.loads(files[name])
        container, key = draw(st.sampled_from(_spots(tree)))
        container[key] = draw(values)
        files[name] = as_json(tree).encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 3)) == 0:
            files[name] = draw(damaged(files[name]))
    if draw(st.booleans()):
        files["chat_template.jinja"] = draw(st.sampled_from(TEMPLATES)).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def model_folder(model: Path) -> Callable[[st.DataObject, Path], None]:
    """A model folder like ``model`` but for odd settings and templates, through whatever reads it without weights."""

    def read(data: st.DataObject, folder: Path) -> None:
        data.draw(odd_model(folder, model))
        for use in (
            _talk,
            _reward,
            lambda place: engine_context(100, str(place)),
            lambda place: check_folder(place, "x"),
        ):
            with contextlib.suppress(UserError):
                use(folder)
        engine_dtype("auto", str(folder), accelerator=False)
        check_vocabulary(model, folder, "x")
        embedding_rows(folder)

    return read


def _talk(folder: Path) -> None:
    chat = load_chat(str(folder), ChatSettings())
    for text in ODD_TEXTS:
        talk = (Message("user", text),)
        with contextlib.suppress(UserError):
            chat.prompt_ids(talk)
            chat.response_ids(talk, text)
            chat.continues(talk, text)
        chat.spelled(text, "user")
        chat.decode([0, *chat.end_ids])


def _reward(folder: Path) -> None:
    conversations = Conversations(load_tokenizer(str(folder)), 20)
    conversations.encode([((Message("system", text), Message("user", text)), text) for text in ODD_TEXTS])


def reward_function(data: st.DataObject, folder: Path) -> None:
    """A user's function that returns or raises odd things."""
    said = data.draw(st.sampled_from(ODD_REWARDS))
    (folder / "reward.py").write_text(f"def reward(prompt, response, answer):\n    {said}\n", encoding="utf-8")
    source = FunctionReward(FunctionScorer(file=str(folder / "reward.py")))
    source.answer(
        [Question(Prompt((Message("user", "p"),)), (Response("a", (1,), (), "stop"),))], lambda index, answer: None
    )
