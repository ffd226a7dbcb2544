"""What ``check`` refuses of a run of images before anything is loaded: policy, sizes, labellers."""

from pathlib import Path

import pytest

from flows.preflight.labellers import check_scorer
from flows.preflight.model_folders import check_image_policy
from pipeline.config import ClipScorer, FunctionScorer, ImageClassifierScorer, JudgeScorer, RunConfig, SingleScorer
from pipeline.errors import UserError
from tests.support.tiny_diffusion import text_conditioned, unconditional


def run(policy: Path, size: tuple[int, int] = (8, 8)) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x", "modality": "image", "mode": "offline", "policy": {"path": str(policy)},
            "pairs": {"kind": "images", "path": "rows.jsonl", "size": size},
        }
    )  # fmt: skip


def test_the_size_of_a_table_is_that_of_the_policy(tmp_path: Path) -> None:
    policy = unconditional(tmp_path / "policy")
    check_image_policy(run(policy))
    with pytest.raises(
        UserError, match=r"pairs\.size: 16 x 8, but .* draws 8 x 8 pixels \(height, width\); allowed: 8 x 8"
    ):
        check_image_policy(run(policy, (16, 8)))
    with pytest.raises(UserError, match=r"policy\.path: .* no such model folder"):
        check_image_policy(run(tmp_path / "gone"))
    with pytest.raises(UserError, match="no network; allowed: a folder in diffusers' layout"):
        check_image_policy(run(tmp_path))


def test_an_autoencoder_counts_in_the_size(tmp_path: Path) -> None:
    policy = text_conditioned(tmp_path / "policy")
    with pytest.raises(UserError, match=r"draws (\d+) x \1 pixels") as caught:
        check_image_policy(run(policy, (3, 3)))
    side = int(str(caught.value).rpartition(" x ")[2])
    check_image_policy(run(policy, (side, side)))
    assert side == 16


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def reward(prompt, image):\n    return 1\n", r"must take \(prompt, image, answer\)"),
        ("def other(prompt, image, answer):\n    return 1\n", "has no function 'reward'"),
    ],
)
def test_a_function_of_pixels_is_tried(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "f.py").write_text(source)
    with pytest.raises(UserError, match=said):
        check_scorer(FunctionScorer(file=str(tmp_path / "f.py")), images=True)


def judge(template: Path, **server: str) -> JudgeScorer:
    told = {"base_url": "http://127.0.0.1:9/v1", "model": "m", **server}
    return JudgeScorer.model_validate({"server": told, "template": str(template)})


def test_labellers_are_checked_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.jinja").write_text("Which is better?")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    refused: list[tuple[SingleScorer, str]] = [
        (judge(tmp_path / "q.jinja"), r"does not show \{\{ prompt \}\}"),
        (judge(tmp_path / "q.jinja", api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (ImageClassifierScorer(path=str(tmp_path / "gone")), r"scorer\.path: .* no such model folder"),
        (ClipScorer(path=str(tmp_path)), r"scorer\.path: .* no config\.json"),
    ]
    for scorer, said in refused:
        with pytest.raises(UserError, match=said):
            check_scorer(scorer, images=True)
    (tmp_path / "q.jinja").write_text("Which is better for {{ prompt }}?")
    check_scorer(judge(tmp_path / "q.jinja"), images=True)
