"""Chat formats of current model families: tokenizers with their control tokens, and templates of our own.

Each template, in ``chat_templates``, has the structure of its family's: the same control tokens, whitespace and
conditions; its words are ours.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from pydantic import JsonValue
from transformers import PreTrainedTokenizerFast

from pipeline.config import ChatSettings
from pipeline.models.chat import Chat
from tests.support.chat_formats import Format

DAY = "2026-01-31"
_TEMPLATES = Path(__file__).with_name("chat_templates")


@dataclass(frozen=True)
class Family:
    """One family's format, as one of its models is used.

    Attributes:
        template: the name of its file.
        special: control tokens; ``named``: those of them that are BOS and EOS; ``added``: other added tokens.
        kwargs: values of the template's variables.
        reasoning: the template's name for thoughts.
        arguments_as_text: whether its calls have arguments as JSON text.
        no_text: the content that it takes for a turn that only calls tools.
        ends: what generation_config.json names as end tokens.
    """

    template: str
    special: tuple[str, ...]
    named: tuple[str | None, str]
    added: tuple[str, ...] = ()
    kwargs: dict[str, JsonValue] = field(default_factory=dict)
    reasoning: str = "reasoning_content"
    arguments_as_text: bool = False
    no_text: str | None = None
    ends: tuple[str, ...] = ()

    @property
    def settings(self) -> ChatSettings:
        """As a run is set for it."""
        return ChatSettings(date=DAY, template_kwargs=self.kwargs)

    @cached_property
    def chat(self) -> Chat:
        """The chat of a run that is set so."""
        tokenizer = self.tokenizer()
        ends = [tokenizer.get_vocab()[end] for end in self.ends]
        return Chat(tokenizer, self.settings, ends)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level BPE tokenizer of a few hundred tokens, with this format."""
        return _tokenizer(self.template, self.special, self.named, self.added)


@cache
def _tokenizer(
    template: str, special: tuple[str, ...], named: tuple[str | None, str], added: tuple[str, ...]
) -> PreTrainedTokenizerFast:
    text = (_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return Format(text, special, named, forged=(), added=added).tokenizer()


_LLAMA = (
    ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
    ("<|begin_of_text|>", "<|eot_id|>"),
)
_CHATML = (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (None, "<|im_end|>"))
_THINKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_GEMMA = (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("<bos>", "<eos>"))
_MISTRAL_TOOLS = ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_MISTRAL = (
    ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", *_MISTRAL_TOOLS),
    ("<s>", "</s>"),
)
_GLM = (
    ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    (None, "<|endoftext|>"),
)
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_GRANITE = (("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), ("<|end_of_text|>", "<|end_of_text|>"))
_COHERE_PARTS = ("THINKING", "ACTION", "TOOL_RESULT", "RESPONSE")
_COHERE_MARKS = tuple(f"<|{side}_{part}|>" for part in _COHERE_PARTS for side in ("START", "END"))
_COHERE_ROLES = ("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")
_COHERE = (
    ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *_COHERE_ROLES, *_COHERE_MARKS),
    ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
)
_OFF: dict[str, JsonValue] = {"enable_thinking": False}

FAMILIES = {
    "llama 3.1": Family("llama_3_1", *_LLAMA),
    "llama 3.2": Family("llama_3_2", *_LLAMA),
    "qwen 2.5": Family("qwen_2_5", *_CHATML, added=_THINKS[2:]),
    "qwen 3": Family("qwen_3", *_CHATML, added=_THINKS),
    "qwen 3, no thinking": Family("qwen_3", *_CHATML, added=_THINKS, kwargs=_OFF),
    "gemma 2": Family("gemma_2", *_GEMMA, no_text=""),
    "gemma 3": Family("gemma_3", *_GEMMA, no_text=""),
    "mistral v3": Family("mistral_v3", *_MISTRAL),
    "mistral nemo": Family("mistral_nemo", *_MISTRAL),
    "mistral small": Family("mistral_small", *_MISTRAL),
    "phi 4": Family(
        "phi_4",
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        ("<|endoftext|>", "<|im_end|>"),
        no_text="",
    ),
    "deepseek r1": Family(
        "deepseek_r1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        added=(
            "<｜User｜>",
            "<｜Assistant｜>",
            "<think>",
            "</think>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
        ),
        arguments_as_text=True,
    ),
    "gpt-oss": Family(
        "gpt_oss",
        ("<|startoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        ("<|startoftext|>", "<|return|>"),
        reasoning="thinking",
        no_text="",
    ),
    "glm 4.5": Family("glm_4_5", *_GLM, added=_THINKS, no_text="", ends=_GLM_ENDS),
    "glm 4.5, no thinking": Family("glm_4_5", *_GLM, added=_THINKS, kwargs=_OFF, no_text="", ends=_GLM_ENDS),
    "command r7b": Family("command_r7b", *_COHERE),
    "granite 3.3": Family("granite_3_3", *_GRANITE, no_text=""),
    "smollm 3": Family("smollm_3", *_CHATML, added=_THINKS),
    "smollm 3, no thinking": Family("smollm_3", *_CHATML, added=_THINKS, kwargs=_OFF),
}
