"""What two runs of a job must have in common, and what a run's shards were sampled with."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.config.files import load_config
from pipeline.storage.rows import read_row_file, read_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.types import derive_seed

# Folders of sampled responses in a round, and what their seeds derive from beside run, round and prompt.
SAMPLED = {
    "samples": "samples",
    "evaluation_samples/greedy": "evaluation greedy",
    "evaluation_samples/sampled": "evaluation sampled",
}


def results(run: Path) -> dict[str, str]:
    """SHA-256 of each round's pairs, row by row, and of each policy's weights.

    The engine's own log-probabilities are counted and not compared: their last bits depend on the batch.
    """
    found: dict[str, str] = {}
    for round_ in RunFolder(run).rounds():
        stages = run / f"round_{round_:03d}"
        if (stages / "pairs").is_dir():
            rows = "\n".join(json.dumps(_without_logprobs(row), sort_keys=True) for row in read_rows(stages / "pairs"))
            found[f"round {round_} pairs"] = hashlib.sha256(rows.encode()).hexdigest()
        for weights in sorted((stages / "policy").glob("*.safetensors")):
            found[f"round {round_} {weights.name}"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return found


def _without_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the number of its responses' log-probabilities in the place of them."""
    return {
        name: {**value, "logprobs": len(value["logprobs"])}
        if isinstance(value, dict) and "logprobs" in value
        else value
        for name, value in row.items()
    }


def largest_difference(run: Path, other: Path) -> float:
    """Between two runs' log-probabilities of the same sampled tokens, as their pairs hold them, in nats."""
    largest = 0.0
    for round_ in RunFolder(run).rounds():
        pairs = (Path(f"round_{round_:03d}") / "pairs", ("chosen", "rejected"))
        for one, two in zip(read_rows(run / pairs[0]), read_rows(other / pairs[0]), strict=False):
            for side in pairs[1]:
                both = zip(one[side]["logprobs"], two[side]["logprobs"], strict=False)
                largest = max([largest, *(abs(a - b) for a, b in both)])
    return largest


def is_shard(path: str) -> bool:
    """Whether a file is a shard of sampled or labelled responses."""
    return Path(path).name.startswith("shard_") and path.endswith(".parquet")


def seeds_of_shards(run: Path) -> dict[str, set[int]]:
    """The seeds that each shard's prompts are sampled with, by the name under which the shard was written."""
    seed = load_config([run / "config.yaml"]).seed
    found: dict[str, set[int]] = {}
    for round_ in RunFolder(run).rounds():
        for name, purpose in SAMPLED.items():
            stage, _, inner = name.partition("/")
            for file in (run / f"round_{round_:03d}" / name).glob("shard_*.parquet"):
                written = f"round_{round_:03d}/{stage}.partial/{inner and inner + '/'}{file.name}"
                prompts = [row["prompt"]["id"] for row in read_row_file(file)]
                found[written] = {derive_seed(seed, purpose, round_, prompt) for prompt in prompts}
    return found
