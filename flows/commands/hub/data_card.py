"""The card of a data set of pairs: a README.md in Hugging Face's form. Data in, text out. Torch-free."""

from collections.abc import Sequence

import yaml

from flows.report.model_card import start_model
from pipeline.config import RunConfig
from pipeline.safe_text import markdown
from pipeline.storage.run_folder import RunFolder

_COLUMNS = """\
| column | what it holds |
| --- | --- |
| `prompt` | the conversation before the response, as turns with `role` and `content` |
| `chosen`, `rejected` | two responses of the policy; `chosen` is preferred |
| `chosen_score`, `rejected_score` | their labels, where the labeller gives numbers |
| `responses`, `rewards` | in place of these: all responses to a prompt with their labels |
| `completion`, `label` | in place of these: one response, and whether it is good |"""
LIMITS_OF_PAIRS = """\
- Responses were written by a model, and may be wrong, biased or unsafe; nothing was filtered.
- Labels are one labeller's view, and hold its biases, such as for long responses.
- Licences and terms of the prompts, of the model and of the labeller apply to this data set too."""


def pairs_card(run: RunFolder, config: RunConfig, rounds: Sequence[int]) -> str:
    """The card, in Markdown below YAML front matter; text by users in it stays plain text."""
    front = {
        "tags": ["prefloop", "preference-learning"],
        "configs": [{"config_name": "default", "data_files": "data/*.jsonl"}],
    }
    scorer = "the data set's own" if config.scorer is None else config.scorer.kind
    made = "\n".join(
        f"| {number} | {run.stage(number, 'pairs').require().rows:,} | data/round_{number:03}.jsonl |"
        for number in rounds
    )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---",
        f"# {markdown(config.name)}: preferences",
        f"Made by prefloop while it trained {markdown(start_model(config))} ({config.mode}, seed {config.seed}). "
        f"Labeller: {markdown(scorer)}. Pairs: `pairing.rule: {config.pairing.rule}`.",
        f"## Rows\n\n| round | rows | file |\n| --- | --- | --- |\n{made}",
        f"## Columns\n\n{_COLUMNS}",
        f"## Limits\n\n{LIMITS_OF_PAIRS}",
    ]
    return "\n\n".join(parts) + "\n"
