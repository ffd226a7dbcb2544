"""Runs of the quickstart's config, and where the time of their rounds went."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.isolated import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STAGES = ("samples", "labels", "pairs", "reference", "policy", "evaluation_samples", "evaluation")
Facts = dict[str, Any]


def run_quickstart(folder: Path, settings: list[str]) -> Path:
    """Run it with ``settings`` in a process of its own; returns the run's folder.

    Raises:
        SystemExit: the run failed; shows the end of what it said.
    """
    command = [sys.executable, "-m", "flows", "run", str(QUICKSTART), *settings, "--run-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return folder


def run_config(folder: Path) -> Facts:
    """The config of the run, every default included."""
    config: Facts = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return config


def round_seconds(folder: Path, number: int) -> Facts:
    """What round ``number`` took: wall time, by kind of work, and the rest.

    Wall time goes from the end of the round before to that of this one. Sampling is the stages that draw (without the
    hand-over of weights), labelling the one that scores, training the reference pass and the optimiser steps
    themselves; the rest is all else: evaluation, pairing, the store, Prefect, the trainer's process, hand-over.
    ``gaps`` says how much of it lay between the stages.
    """
    here, before = folder / f"round_{number:03d}", folder / f"round_{number - 1:03d}"
    manifests = {name: _manifest(here / name) for name in STAGES if (here / name).is_dir()}
    seconds = {name: float(manifest["seconds"]) for name, manifest in manifests.items()}
    start = _finished(before / "evaluation")
    wall, to_policy = _finished(here / "evaluation") - start, _finished(here / "policy") - start
    swapped = _handover(manifests.get("evaluation_samples", {}).get("metrics", {}))
    work = {
        "sampling": seconds["samples"] + seconds.get("evaluation_samples", 0.0) - swapped,
        "labelling": seconds["labels"],
        "training": seconds.get("reference", 0.0) + float(manifests["policy"]["metrics"]["seconds"]),
    }
    rest = wall - sum(work.values())
    facts: Facts = {"wall": wall, "to_policy": to_policy, **work, "rest": rest, "rest_share": rest / wall}
    facts["gaps"] = _gaps(here, start, seconds)
    facts |= {"stages": seconds, "prompts": manifests["samples"]["rows"]}
    facts |= {"updates": manifests["policy"]["metrics"]["steps"], "tokens": manifests["samples"]["metrics"]["tokens"]}
    facts["tokens_per_second"] = facts["tokens"] / seconds["samples"]
    facts["prompts_per_second"] = facts["prompts"] / to_policy
    return facts


def _gaps(here: Path, start: float, seconds: Facts) -> Facts:
    """Before each stage, in the order in which they ended: the time since the last one in which none was at work."""
    found: Facts = {}
    for name in sorted(seconds, key=lambda name: _finished(here / name)):
        end = _finished(here / name)
        found[name] = end - start - seconds[name]
        start = end
    return found


def _manifest(stage: Path) -> Facts:
    manifest: Facts = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def _finished(stage: Path) -> float:
    """When the manifest, the last file of a stage, was written, in seconds since 1970."""
    return (stage / "manifest.json").stat().st_mtime


def _handover(drawn: Facts) -> float:
    """Seconds in which the engine took the new weights: once, before the held-out prompts; both draws tell of it."""
    greedy = drawn.get("greedy", {})
    return float((greedy.get("weight_handshake") or {}).get("seconds", 0.0))
