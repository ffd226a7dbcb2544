"""A config of eight prompts for commands that read one and start nothing."""

import json
from pathlib import Path


def write_small_config(folder: Path, model: Path, *settings: str) -> Path:
    """``run.yaml`` in ``folder``, and its prompts: iterative, two held out, labelled by ``match``."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}", "answer": str(n)}) + "\n" for n in range(8)))
    lines = (
        "name: t", "mode: iterative", f"policy: {{path: {model}}}", f"prompts: {{path: {prompts}}}",
        "scorer: {kind: match}", "held_out: {prompts: 2}", *settings,
    )  # fmt: skip
    file = folder / "run.yaml"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file
