"""The real data sets beside a checkout, with the settings that read them: ../shared/data, not part of the project."""

import pytest

from tests.support.places import DATA

needs_real_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) is not beside this checkout")
# name -> file, the column mapping under pairs, a column of responses for a warm start
COLUMNS = {
    "pandalm": "{prompt: [instruction, input], chosen: response1, rejected: response2, votes: votes}",
    "mtbench": "{rewards: gpt4_scores}",
    "gsm8k": "{prompt: question, responses: solutions, rewards: correct}",
}
FILES = {
    "pandalm": DATA / "pairs" / "pandalm_test_human3.jsonl",
    "mtbench": DATA / "ranked" / "mtbench_vicuna_k4_scores.jsonl",
    "gsm8k": DATA / "verifiable" / "gsm8k_4model_solutions.jsonl.gz",
}
