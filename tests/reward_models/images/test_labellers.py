"""Labellers of images: a function on pixels, a classifier, a CLIP-type model; held to the library's own values."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

from pipeline.config import (
    ClipScorer,
    EnsembleScorer,
    FunctionScorer,
    ImageClassifierScorer,
    LengthScorer,
    ScorerSettings,
)
from pipeline.data.pictures.picture import decoded_picture
from pipeline.errors import RunError, UserError
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Ledger
from reward_models.build import build_labeller
from reward_models.images.build import build_image_labeller
from reward_models.images.pixels import ImageItem, image_group
from reward_models.labeller import Labels
from tests.support.pictures import BLUE, GREEN, RED, halves, picture

BLUENESS = """
def reward(prompt, image, answer):
    assert image.shape == (8, 8, 3) and image.dtype == "uint8"
    if prompt == "no label":
        return None
    return float(image[..., 2].mean() - image[..., 0].mean()) / 255 + (0 if answer is None else 10)
"""


def accounts(cache: Path | None = None) -> Accounts:
    return Accounts(LabelCache(cache), Ledger(None))


def labels(settings: ScorerSettings, *groups: list[ImageItem], books: Accounts | None = None) -> list[Labels]:
    made = [image_group(items) for items in groups]
    files = {name: data for _, found in made for name, data in found.items()}
    return build_image_labeller(settings, books or accounts(), files).label([group for group, _ in made])


def items(prompt: str, *files: bytes, answer: str | None = None) -> list[ImageItem]:
    return [ImageItem(prompt, data, answer) for data in files]


def test_a_function_reads_prompt_pixels_and_answer(tmp_path: Path) -> None:
    file = tmp_path / "blue.py"
    file.write_text(BLUENESS)
    found = labels(
        FunctionScorer(file=str(file)),
        items("a sea", picture(BLUE), picture(RED), halves(RED, BLUE)),
        items("a sea", picture(GREEN), answer="3"),
        items("no label", picture(BLUE)),
    )
    assert [one.scores for one in found] == [(1.0, -1.0, 0.0), (10.0,), (None,)]


def test_labels_are_kept_by_the_image_and_not_by_its_name(tmp_path: Path) -> None:
    file, calls = tmp_path / "count.py", tmp_path / "calls"
    counted = f"    with open({str(calls)!r}, 'a') as file:\n        file.write('x')\n"
    file.write_text(f"def reward(p, image, a):\n{counted}    return int(image[0, 0, 2])\n")
    group = Group(
        Prompt((Message("user", "p"),)), (), tuple(Response(name, (), (), "stop") for name in ("a", "b", "c"))
    )
    names = {"a": picture(BLUE), "b": picture(RED), "c": picture(BLUE)}
    others = {"a": picture(RED), "b": picture(RED), "c": picture(GREEN)}
    for files, scores, asked in ((names, (255, 0, 255), 2), (names, (255, 0, 255), 2), (others, (0, 0, 0), 3)):
        with accounts(tmp_path / "labels.sqlite") as books:
            (found,) = build_image_labeller(FunctionScorer(file=str(file)), books, files).label([group])
        assert found.scores == scores and len(calls.read_text()) == asked


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def reward(prompt, image):\n    return 1\n", r"must take \(prompt, image, answer\)"),
        ("def reward(p, image, a):\n    return image[9, 9, 9]\n", r":2: reward: IndexError: .* to the prompt 'a sea'"),
        ("def reward(p, image, a):\n    return image.mean() * float('nan')\n", "a finite number or None"),
    ],
)
def test_faults_of_a_function_are_named(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "reward.py").write_text(source)
    with pytest.raises(UserError, match=said):
        labels(FunctionScorer(file=str(tmp_path / "reward.py")), items("a sea", picture(BLUE)))


def test_kinds_of_the_other_modality_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"length labels texts, not images; allowed: dots, function, judge"):
        labels(LengthScorer(), items("a", picture(RED)))
    with pytest.raises(UserError, match=r"scorer.kind: clip reads images; allowed: modality: image"):
        build_labeller(ClipScorer(path=str(tmp_path)), accounts())


def test_an_image_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def reward(p, image, a):\n    return 1\n")
    settings = FunctionScorer(file=str(tmp_path / "reward.py"))
    group = Group(Prompt((Message("user", "p"),)), (), (Response("feed", (), (), "stop"),))
    with pytest.raises(RunError, match="no image 'feed'"):
        build_image_labeller(settings, accounts(), {}).label([group])
    with pytest.raises(RunError, match="cannot be read: not a picture"):
        build_image_labeller(settings, accounts(), {"feed": b"feed"}).label([group])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    shape = ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        id2label={0: "sea", 1: "wood", 2: "fire"}, label2id={"sea": 0, "wood": 1, "fire": 2},
    )  # fmt: skip
    ViTForImageClassification(shape).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def logits(folder: Path, data: bytes) -> torch.Tensor:
    """Of one image alone: scaled by PIL, and normalised as the folder's file says (mean and deviation 1/2)."""
    image = decoded_picture(data).resize((16, 16), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return AutoModelForImageClassification.from_pretrained(folder)(pixel_values=(pixels - 0.5) / 0.5).logits[0]


FILES = (picture(BLUE), halves(RED, BLUE), picture(GREEN, (12, 20)))


@pytest.mark.parametrize(("label", "number"), [("wood", 1), (2, 2), ("0", 0)])
def test_a_classifier_gives_its_class_as_the_library_does(classifier: Path, label: str | int, number: int) -> None:
    want = [logits(classifier, data).log_softmax(-1)[number].item() for data in FILES]
    (found,) = labels(ImageClassifierScorer(path=str(classifier), label=label, batch_size=2), items("x", *FILES))
    assert found.scores == pytest.approx(want, abs=1e-5)
    assert max(want) - min(want) > 1e-3


def test_a_classifier_asks_for_the_class_that_the_answer_names(classifier: Path) -> None:
    settings = ImageClassifierScorer(path=str(classifier), value="logit")
    found = labels(settings, items("x", FILES[0], answer="fire"), items("y", FILES[0], answer="1"))
    raw = logits(classifier, FILES[0])
    assert [one.scores[0] for one in found] == pytest.approx([raw[2].item(), raw[1].item()], abs=1e-5)
    with pytest.raises(UserError, match=r"scorer.label: is not set, and the prompt 'x' has no answer"):
        labels(settings, items("x", FILES[0]))
    with pytest.raises(UserError, match=r"the answer of 'x': 'ice' is no class of .*0: sea, 1: wood, 2: fire"):
        labels(settings, items("x", FILES[0], answer="ice"))


def test_a_label_depends_on_no_other_image(classifier: Path) -> None:
    settings = ImageClassifierScorer(path=str(classifier), label=0)
    (together,) = labels(settings, items("x", *FILES))
    for place, data in enumerate(FILES):
        assert labels(settings, items("x", data))[0].scores == (together.scores[place],)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[], unk_token="<|endoftext|>", bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = CLIPConfig(
        text_config={
            **side, "vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1,
        },
        vision_config={**side, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(shape).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def similarity(folder: Path, text: str, data: bytes, logit: bool = True) -> float:
    """The library's own forward pass over one image and one text."""
    from transformers import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(decoded_picture(data), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokenizer([text], return_tensors="pt", truncation=True, max_length=12))
    return float(out.logits_per_image[0, 0]) / (1 if logit else float(model.logit_scale.detach().exp()))


def test_clip_gives_the_logit_of_image_and_text(clip: Path) -> None:
    books = accounts()
    asked = [items("a sea", *FILES), items("fire in a wood of trees", FILES[1])]
    found = labels(ClipScorer(path=str(clip), batch_size=3), *asked, books=books)
    assert found[0].scores == pytest.approx([similarity(clip, "a sea", data) for data in FILES], abs=2e-4)
    assert found[1].scores == pytest.approx([similarity(clip, "fire in a wood of trees", FILES[1])], abs=2e-4)
    assert [fact() for fact in books.facts] == [{"truncated_prompts": 1}]
    (cosine,) = labels(ClipScorer(path=str(clip), value="cosine", text="a photo of {prompt}"), items("b", FILES[0]))
    assert cosine.scores == pytest.approx([similarity(clip, "a photo of b", FILES[0], logit=False)], abs=1e-5)


def test_models_that_are_no_labellers_are_refused(clip: Path, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer.path: .* no preprocessor_config.json"):
        labels(ImageClassifierScorer(path=str(tmp_path)), items("x", FILES[0]))
    with pytest.raises(UserError, match=r"not a trained model: it lacks the weights|cannot be loaded"):
        labels(ImageClassifierScorer(path=str(clip)), items("x", FILES[0]))
    with pytest.raises(UserError, match=r"no tokenizer files|does not compare images with texts"):
        labels(ClipScorer(path=str(classifier)), items("x", FILES[0]))


def test_an_ensemble_of_image_labellers(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "blue.py").write_text(BLUENESS)
    settings = EnsembleScorer.model_validate(
        {"members": [
            {"scorer": {"kind": "function", "file": str(tmp_path / "blue.py")}},
            {"scorer": {"kind": "image_classifier", "path": str(classifier), "label": "sea"}, "weight": 3},
        ]}
    )  # fmt: skip
    (found,) = labels(settings, items("x", *FILES[:2]))
    sea = [logits(classifier, data).log_softmax(-1)[0].item() for data in FILES[:2]]
    assert found.scores == pytest.approx(
        [(blue + 3 * one) / 4 for blue, one in zip((1.0, 0.0), sea, strict=True)], abs=1e-5
    )
    assert found.disagreement[0] and found.disagreement[0] > 0
