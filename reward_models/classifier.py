"""A Hugging Face sequence-classification model as a reward: conversation in, one logit out.

It gets messages and applies its own tokenizer and chat template, never the policy's tokens.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import ClassifierScorer
from pipeline.types import Group, Message, UserError

Ids = list[int]


class ClassifierReward:
    """Scores of one logit of the model.

    Attributes:
        truncated: conversations so far that were longer than ``max_tokens`` and lost tokens at the left.
    """

    def __init__(self, settings: ClassifierScorer) -> None:
        """Load model and tokenizer, on the GPU if there is one. Raises ``UserError`` naming the path or the setting."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._settings = settings
        self.truncated = 0
        self._borrowed_pad = False
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                settings.path, trust_remote_code=settings.trust_remote_code
            )
            self._model, report = AutoModelForSequenceClassification.from_pretrained(
                settings.path,
                dtype=settings.dtype,
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"scorer.path: {settings.path}: cannot be loaded: {str(error).splitlines()[0]}") from error
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"scorer.path: {settings.path} is no trained classifier: it lacks the weights {missing}")
        outputs: int = self._model.config.num_labels
        if settings.output >= outputs:
            raise UserError(f"scorer.output: {settings.output}, but {settings.path} has outputs 0 to {outputs - 1}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device).eval()

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """One logit a response, in batches of conversations of like length. Padding does not change a score."""
        rows = [self._encode(group.prompt.messages, r.text) for group in groups for r in group.responses]
        scores: list[float] = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), self._settings.batch_size):
            batch = order[start : start + self._settings.batch_size]
            for index, score in zip(batch, self._logits([rows[i] for i in batch]), strict=True):
                scores[index] = score
        given = iter(scores)
        return [tuple(next(given) for _ in group.responses) for group in groups]

    def _encode(self, messages: Sequence[Message], text: str) -> Ids:
        """Ids of the whole conversation, at most ``max_tokens`` of them, the last ones kept."""
        turns = [{"role": m.role, "content": m.content} for m in (*messages, Message("assistant", text))]
        if self._tokenizer.chat_template:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False)
            # The template wrote its own special tokens; a second BOS would be one that training never saw.
            ids: Ids = self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = self._tokenizer("\n".join(turn["content"] for turn in turns), verbose=False)["input_ids"]
        if len(ids) > self._settings.max_tokens:
            self.truncated += 1
            ids = ids[-self._settings.max_tokens :]
        return ids

    def _logits(self, rows: list[Ids]) -> list[float]:
        import torch

        width = max(1, *map(len, rows))
        pad = self._pad_id(rows)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        chosen: list[float] = logits[:, self._settings.output].float().tolist()
        return chosen

    def _pad_id(self, rows: list[Ids]) -> int:
        """The model's padding id; where it has none, one that no row uses.

        Decoder classifiers pool at the last token that is not padding, so they refuse to run without
        an id for it, and one that stands in a row would move the place.
        """
        text_config = self._model.config.get_text_config()
        if text_config.pad_token_id is not None and not self._borrowed_pad:
            return int(text_config.pad_token_id)
        used = {token for row in rows for token in row}
        self._borrowed_pad = True
        text_config.pad_token_id = next(i for i in range(text_config.vocab_size) if i not in used)
        return int(text_config.pad_token_id)
