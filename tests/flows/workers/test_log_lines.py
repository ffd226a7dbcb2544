"""What of a child's log reaches Prefect's UI, and at which level."""

import logging

import pytest

from flows.workers.logs.log_lines import MAX_LETTERS, LogLines
from pipeline.safe_text import HIDDEN, secrets_of

VLLM_PREFIX = "(EngineCore pid=12973) "


def shown(*pieces: str, secrets: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    lines = LogLines(secrets)
    found = [line for piece in pieces for line in lines.feed(piece)]
    return [(line.level, line.text) for line in [*found, *lines.end()]]


@pytest.mark.parametrize(
    ("row", "level", "text"),
    [
        ("step 3: loss 0.4", logging.INFO, "step 3: loss 0.4"),
        (VLLM_PREFIX + "INFO 11-27 17:39:10 [model.py:733] Resolved", logging.DEBUG, "Resolved"),
        (VLLM_PREFIX + "WARNING 11-27 17:39:10 [cpu.py:2] No Triton", logging.WARNING, "No Triton"),
        ("ERROR 11-27 17:39:10 [core.py:9] out of memory", logging.ERROR, "out of memory"),
        ("[W1127 17:39:15.373 utils.cpp:68] NUMA", logging.WARNING, "[W1127 17:39:15.373 utils.cpp:68] NUMA"),
        ("/x/y.py:138: FutureWarning: old", logging.WARNING, "/x/y.py:138: FutureWarning: old"),
        ("WARNING:root:careful", logging.WARNING, "WARNING:root:careful"),
        ("torch.OutOfMemoryError: CUDA out of memory", logging.ERROR, "torch.OutOfMemoryError: CUDA out of memory"),
        ("\x1b[31mred\x1b[0m and \x07bell", logging.INFO, "red and �bell"),
    ],
)
def test_each_line_has_the_level_at_which_it_was_said(row: str, level: int, text: str) -> None:
    assert shown(row + "\n") == [(level, text)]


def test_a_traceback_is_one_error_however_the_text_is_cut() -> None:
    log = (
        "before\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\n    g()\nValueError: no\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File \"b.py\", line 2, in h\npipeline.types.RunError: worse\nafter\n"
    )  # fmt: skip
    for pieces in ([log], [*log], [log[:70], log[70:]]):
        assert [level for level, _ in shown(*pieces)] == [logging.INFO, logging.ERROR, logging.INFO]
        error = shown(*pieces)[1][1]
        assert error.startswith("Traceback") and "ValueError: no" in error and error.endswith("RunError: worse")


def test_progress_bars_and_empty_lines_stay_in_the_file() -> None:
    bar = "Loading weights:   0%|          | 0/21 [00:00<?, ?it/s]\rLoading weights: 100%|██| 21/21 [00:00, 12.0it/s]\n"
    assert shown(bar, "\n   \n", "Loading shards: 100% Completed | 1/1 [00:00<00:00, 31.92it/s]\n") == []


def test_long_lines_are_cut_and_long_tracebacks_keep_their_end() -> None:
    assert len(shown("x" * 10_000)[0][1]) == MAX_LETTERS + 2
    rows = "".join(f'  File "deep.py", line {n}\n' for n in range(500))
    ((_, text),) = shown(f"Traceback (most recent call last):\n{rows}RecursionError: deep\n")
    assert text.endswith("RecursionError: deep") and text.count("\n") < 50


def test_keys_are_never_shown() -> None:
    environment = {"JUDGE_KEY": "correct-horse-battery", "HF_TOKEN": "short", "MONKEY": "bananas-bananas"}
    secrets = secrets_of(environment)
    assert secrets == ("correct-horse-battery",)
    said = "401 for correct-horse-battery, sk-abcdefghijklmnop, Bearer abc.def-ghi.jkl, https://me:pw@host/v1"
    ((_, text),) = shown(said, secrets=secrets)
    assert text == f"401 for {HIDDEN}, {HIDDEN}, Bearer {HIDDEN}, https://{HIDDEN}@host/v1"
