"""Files of suites in their published forms, small enough for a tiny model."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny_model import TEMPLATE, save_tiny_model, tiny_tokenizer

IFEVAL: list[dict[str, Any]] = [
    {
        "key": 1000, "prompt": "the cat sat. Write it without any commas.",
        "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
    },
    {
        "key": 1001, "prompt": "a dog ran. Write at least 300 words, all in lowercase.",
        "instruction_id_list": ["length_constraints:number_words", "change_case:english_lowercase"],
        "kwargs": [{"relation": "at least", "num_words": 300}, {}],
    },
    {
        "key": 1005, "prompt": "the mat. Less than 500 words, and no commas.",
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [{"relation": "less than", "num_words": 500}, {}],
    },
    {
        "key": 1012, "prompt": "the barn. Wrap all of it in double quotation marks.",
        "instruction_id_list": ["startend:quotation"], "kwargs": [{"num_words": None}],
    },
]  # fmt: skip
SUBJECTS = ("cat", "dog", "barn", "mat")
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
target_delimiter: " "
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WORDS = """
task: tiny_words
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: train
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{word}}"
generation_kwargs: {until: [" "], max_gen_toks: 8, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
"""
CLOZE = """
task: tiny_cloze
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: train
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{word}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_tasks(folder: Path, words: Mapping[int, str] | None = None) -> Path:
    """A folder of four tasks with 24 rows; ``words``: what a model is to generate, by row."""
    folder.mkdir()
    rows = [
        {
            "question": f"the {SUBJECTS[n % 4]} number {n} ran to the", "choices": ["old barn", "mat", f"cat {n}"],
            "answer": n % 3, "word": (words or {}).get(n, "barn"),
            "text": f"the {SUBJECTS[n % 4]} sat on mat {n}. " * (1 + n),
        }
        for n in range(24)
    ]  # fmt: skip
    data = write_rows(folder.with_name("tasks.jsonl"), rows)
    for name, text in (("choice", CHOICE), ("words", WORDS), ("rolling", ROLLING), ("cloze", CLOZE)):
        (folder / f"{name}.yaml").write_text(text % data)
    return folder


def write_suite_job(folder: Path) -> Path:
    """A tiny model, pairs to train on, and a config of a run whose engine is transformers."""
    save_tiny_model(folder / "model")
    # Turns end as texts do: the harness knows no other end.
    tiny_tokenizer(template=TEMPLATE.replace("<|end|>", "</s>")).save_pretrained(folder / "model")
    pairs = [
        {"prompt": f"the dog {n}", "chosen": f"ran to the old barn {n}", "rejected": f"sat on mat {n}"}
        for n in range(20)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "ifeval.jsonl", IFEVAL)
    file = folder / "run.yaml"
    file.write_text(
        f"name: suites\nmode: offline\nrounds: 1\npolicy: {{path: {folder / 'model'}}}\n"
        f"pairs: {{path: {folder / 'pairs.jsonl'}}}\nheld_out: {{prompts: 4}}\n"
        "sampler: {kind: transformers, dtype: float32, batch_size: 8}\nsampling: {max_tokens: 24}\n"
        "training: {learning_rate: 1.0e-3, batch_size: 4, reference_cache: null}\nshard_size: 2\n"
    )
    return file
