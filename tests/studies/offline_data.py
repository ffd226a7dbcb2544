"""What is typed for real preference data, with several losses: does the policy rank held-out pairs, and what is said?

For each data set: one small policy, trained from nothing on one response a prompt; from it, ``prefloop run
configs/offline.yaml`` with a path and at most one setting of the data, for each loss that fits. The last line of the
run's own table says whether it ranks held-out pairs better than the best baseline.

    python -m tests.studies.offline_data --record
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.held_out import baseline_line
from tests.support.places import DATA, ROOT
from tests.support.real_data import FILES

HERE = Path(__file__).parent
# name -> the file, what is typed besides it, and settings of the policy's warm start.
TYPED = {
    "gsm8k": (FILES["gsm8k"], [], "{prompt: question, response: ground_truth}"),
    "pandalm": (FILES["pandalm"], ["pairs.votes.tie=0"], "{prompt: [instruction, input], response: response1}"),
    "mtbench": (FILES["mtbench"], [], "{prompt: prompt, response: 'responses[0]'}"),
    "hh-like": (Path("hh.jsonl"), [], "{prompt: question, response: ground_truth}"),
}
LOSSES = ("dpo", "simpo", "kto", "ipo", "nca_list")
HELD_OUT = {"gsm8k": 128, "pandalm": 34, "mtbench": 24, "hh-like": 128}
# What a loss asks for besides: whole labels.
ASKED = {("pandalm", "kto"): ["pairs.votes.label=majority"]}
# A list loss reads groups.
GROUPS = ("gsm8k", "mtbench")
SIZES = (
    *(
        "chat.max_prompt_tokens=400",
        "chat.max_response_tokens=200",
        "held_out.prompts=128",
        "sampler.kind=transformers",
    ),
    *("sampling.max_tokens=16", "training.learning_rate=5e-4", "training.batch_size=32", "training.dtype=float32"),
    *("limits.missing_eos=1", "limits.identical_when_cut=1", "limits.duplicate_row=1", "limits.long_for_policy=0.5"),
)
START = """
mode: offline
rounds: 1
policy: {kind: scratch, vocab_size: 1000, hidden_size: 96, layers: 2, context: 768}
warm_start: {max_steps: 60, batch_size: 32, learning_rate: 3.0e-3}
loss: {preset: dpo}
"""


def prefloop(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of prefloop in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect")}
    command = [sys.executable, "-m", "flows", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def held_out(name: str) -> str:
    """Return the setting of the number of held-out prompts."""
    return f"held_out.prompts={HELD_OUT[name]}"


def in_form_of_hh(folder: Path) -> Path:
    """Write a right and a wrong solution of each question as two transcripts; return the file."""
    file = folder / "hh.jsonl"
    with gzip.open(FILES["gsm8k"], "rt", encoding="utf-8") as rows, file.open("w", encoding="utf-8") as out:
        for row in map(json.loads, rows):
            sides = dict(zip(row["correct"], row["solutions"], strict=True))
            if len(sides) == 2:
                asked = f"\n\nHuman: {row['question']}\n\nAssistant: "
                out.write(json.dumps({"chosen": asked + sides[True], "rejected": asked + sides[False]}) + "\n")
    return file


def start_policy(folder: Path, name: str) -> Path:
    """Train the policy that all losses start from; return its folder."""
    file, typed, columns = TYPED[name]
    source = FILES["gsm8k"] if name == "hh-like" else file
    pairs = folder / "hh.jsonl" if name == "hh-like" else file
    config = folder / f"{name}-start.yaml"
    config.write_text(
        f"name: {name}-start{START}prompts: {{path: {source}, columns: {columns}}}\npairs: {{path: {pairs}}}\n"
    )
    words = [
        str(config),
        *typed,
        *SIZES,
        held_out(name),
        "--until",
        "0:policy",
        "--run-dir",
        str(folder / f"{name}-start"),
    ]
    done = prefloop(folder, "run", *words)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / f"{name}-start" / "round_000" / "policy"


def trained(folder: Path, name: str, loss: str, policy: Path) -> str:
    """Run one loss; return a line of its result."""
    file, typed, _ = TYPED[name]
    pairs = folder / file if name == "hh-like" else file
    root = folder / f"{name}-{loss}"
    words = [str(ROOT / "configs" / "offline.yaml"), f"policy.path={policy}", f"pairs.path={pairs}", *typed]
    words += ASKED.get((name, loss), [])
    done = prefloop(folder, "run", *words, f"loss.preset={loss}", *SIZES, held_out(name), "--run-dir", str(root))
    metrics_file = root / "round_001" / "evaluation" / "metrics.json"
    if not metrics_file.is_file():
        return f"exit code {done.returncode}: {' '.join((done.stderr or done.stdout).splitlines()[-3:])[:400]}"
    metrics = json.loads(metrics_file.read_text())
    gate = root / "round_001" / "gate" / "decision.json"
    decided = json.loads(gate.read_text())["decision"] if gate.is_file() else "-"
    return f"exit code {done.returncode}, {decided}; {baseline_line(metrics)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--sets", nargs="+", choices=[*TYPED], default=[*TYPED])
    options.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    options.add_argument("--folder", type=Path)
    options.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    given = options.parse_args(arguments)
    if not DATA.is_dir():
        sys.exit("the data sets are not beside this checkout")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="offline_data_"))
    folder.mkdir(parents=True, exist_ok=True)
    in_form_of_hh(folder)
    lines = ["| data | loss | what the run says |", "| --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    for name in given.sets:
        policy = start_policy(folder, name)
        for loss in given.losses:
            if loss == "nca_list" and name not in GROUPS:
                continue
            lines.append(f"| {name} | {loss} | {trained(folder, name, loss, policy)} |")
            print(lines[-1], flush=True)
    if given.record:
        with (HERE / "RESULTS.md").open("a", encoding="utf-8") as results:
            results.write("\n## Offline losses on real data\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
