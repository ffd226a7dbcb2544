"""TRL's DPOTrainer fed with token ids and reference log-probabilities as they are, and its steps timed."""

import time
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.trainer.dpo_trainer import DPOTrainer


class GivenReferencesTrainer(DPOTrainer):
    """Takes columns of ids and of reference log-probabilities instead of making them of text."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class StepsTimer(TrainerCallback):
    """Seconds from the begin of training, with everything set up, to its end."""

    def __init__(self) -> None:
        self._start = 0.0
        self.seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._start


def bare_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """As many made-up words as there are ids; the trainer asks it for the padding id alone."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    return tokenizer
