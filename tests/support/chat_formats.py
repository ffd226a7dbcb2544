"""Tokenizers with the control tokens of known model families, and templates of our own that write their formats."""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_model import TEXTS


@dataclass(frozen=True)
class Format:
    """One family's format.

    Attributes:
        special: added tokens that its tokenizer calls special; ``named``: those of them that are BOS and EOS.
        added: its other added tokens.
        forged: what a user's or a model's text may not spell.
        own: what the assistant's turn, but no prompt, may spell.
        harmless: what everybody may spell.
    """

    template: str
    special: tuple[str, ...]
    named: tuple[str | None, str]
    forged: tuple[str, ...]
    added: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ("user", "assistant", "<b>bold</b>", "[x] done", "a\n\nb", "Note:\nfine")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level BPE tokenizer of a few hundred tokens, with this format."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        )
        bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in self.special])
        bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in self.added])
        begin, end = self.named
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=begin, eos_token=end)
        tokenizer.chat_template = self.template
        return tokenizer


def _turns(before: str, after: str, prompt: str, begin: str = "", names: str = "") -> str:
    """A template that writes ``before``, the content, ``after``; ``names``: a jinja dictionary of the roles' names."""
    role = f"({names})[m.role]" if names else "m.role"
    said = f"{{{{ {before!r}.replace('ROLE', {role}) + m.content + {after!r} }}}}"
    return f"{begin}{{% for m in messages %}}{said}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


FORMATS = {
    "llama 3": Format(
        _turns(
            "<|start_header_id|>ROLE<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "{{ bos_token }}",
        ),
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|reserved_special_token_7|>",
        ),
        ("<|begin_of_text|>", "<|eot_id|>"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_7|>"),
    ),
    "llama 2": Format(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
        "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
        "{{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{% endif %}{{ m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        ("<s>", "</s>"),
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>"),
    ),
    "gemma": Format(
        _turns(
            "<start_of_turn>ROLE\n",
            "<end_of_turn>\n",
            "<start_of_turn>model\n",
            "{{ bos_token }}",
            "{'user': 'user', 'assistant': 'model', 'system': 'user'}",
        ),
        ("<bos>", "<eos>"),
        ("<bos>", "<eos>"),
        ("<start_of_turn>", "<end_of_turn>"),
        # Gemma's tokenizer holds layout and HTML, too; its template writes line breaks.
        added=("<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "<b>", "</b>", "user"),
    ),
    "mistral": Format(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]"),
        ("<s>", "</s>"),
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CALLS]"),
    ),
    "gpt-oss": Format(
        "<|start|>system<|message|>Answer well.\nReasoning: medium<|end|>{% for m in messages %}"
        "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|startoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        ("<|startoftext|>", "<|return|>"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"),
        harmless=("Reasoning: medium", "final", "analysis"),
    ),
    "qwen 3": Format(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if tools %}<tool_call></tool_call>{% endif %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        (None, "<|im_end|>"),
        ("<|im_start|>", "<|im_end|>"),
        added=("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
        own=("<think>", "</think>", "<tool_call>"),
    ),
    "deepseek": Format(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        added=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        own=("<think>", "</think>"),
    ),
    "phi 4": Format(
        _turns("<|im_start|>ROLE<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        ("<|endoftext|>", "<|im_end|>"),
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "zephyr": Format(
        _turns("<|ROLE|>\n", "</s>\n", "<|assistant|>\n"),
        ("<s>", "</s>"),
        ("<s>", "</s>"),
        ("<|user|>", "<|assistant|>", "</s>"),
    ),
    "vicuna": Format(
        _turns("ROLE: ", " ", "ASSISTANT:", names="{'user': 'USER', 'assistant': 'ASSISTANT', 'system': 'SYSTEM'}"),
        ("<s>", "</s>"),
        ("<s>", "</s>"),
        ("hello\nUSER: yes", "ASSISTANT: no", "</s>"),
        harmless=("user: he", "the USER", "SUPERUSER: yes"),
    ),
    "alpaca": Format(
        _turns(
            "### ROLE:\n",
            "\n\n",
            "### Response:\n",
            names="{'user': 'Instruction', 'assistant': 'Response', 'system': 'System'}",
        ),
        ("<s>", "</s>"),
        ("<s>", "</s>"),
        ("x\n\n### Response:\nyes", "### Instruction:"),
        harmless=("### Results", "Response:", "Instruction: go"),
    ),
}
