"""One side of the scoring benchmark, in a process of its own: rewards of generated conversations, timed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from pipeline.config import ClassifierScorer
from pipeline.types import Group, Message, Prompt, Response
from reward_models.local.classifier import ClassifierReward
from tests.benchmarks.generated_pairs import FIRST_TOKEN, generate_groups
from tests.benchmarks.generated_pairs import Group as Generated
from tests.benchmarks.isolated import Facts, cores, serve
from tests.benchmarks.llama_shapes import SHAPES, Shape
from tests.benchmarks.process_memory import PeakMemory

LOOP_BATCH = 16
WARM = 4
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"


def write_classifier(shape: Shape, folder: Path) -> None:
    """A classifier with random weights, whose tokenizer's words ``w3``, ``w4``… are one token each."""
    torch.manual_seed(0)
    make_settings: Any = LlamaConfig
    settings = make_settings(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=16_384,
        num_labels=1,
        pad_token_id=0,
    )
    make_model: Any = LlamaForSequenceClassification
    make_model(settings).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(FIRST_TOKEN, shape.vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def groups_of(generated: list[Generated]) -> list[Group]:
    """Each prompt with its responses, as text."""

    def text(ids: tuple[int, ...]) -> str:
        return " ".join(f"w{i}" for i in ids)

    def response(ids: tuple[int, ...]) -> Response:
        return Response(text(ids), ids, (), "stop")

    return [
        Group(Prompt((Message("user", text(g.prompt)),)), g.prompt, tuple(map(response, g.responses)))
        for g in generated
    ]


def our_scores(folder: Path) -> Callable[[list[Group]], list[float]]:
    """``ClassifierReward`` with its defaults."""
    scorer = ClassifierReward(ClassifierScorer(path=str(folder), max_tokens=16_384))
    return lambda groups: [score for scores in scorer.score(groups) for score in scores if score is not None]


def loop_scores(folder: Path) -> Callable[[list[Group]], list[float]]:
    """Batches of 16 conversations in the order in which they come, padded to the longest."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def scores(groups: list[Group]) -> list[float]:
        texts = [f"{g.prompt.messages[0].content} {r.text}" for g in groups for r in g.responses]
        found: list[float] = []
        for start in range(0, len(texts), LOOP_BATCH):
            batch = tokenizer(texts[start : start + LOOP_BATCH], padding=True, return_tensors="pt").to(device)
            batch.pop("token_type_ids", None)
            with torch.inference_mode():
                found += model(**batch).logits[:, 0].tolist()
        return found

    return scores


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Conversations a second, MiB, and the scores themselves, so that the sides can be compared."""
    torch.set_num_threads(cores())
    shape = SHAPES[job["shape"]]
    write_classifier(shape, folder / "classifier")
    sizes = (job["prompts"], job["responses"], job["prompt"], job["response"])
    groups = groups_of(generate_groups(*sizes, shape.vocabulary, job["seed"]))
    score = (our_scores if job["side"] == "ours" else loop_scores)(folder / "classifier")
    memory = PeakMemory(cuda=torch.cuda.is_available())
    score(groups[:WARM])
    start = time.perf_counter()
    scores = score(groups)
    seconds = time.perf_counter() - start
    facts = {"seconds": seconds, "per_second": len(scores) / seconds, "memory_mib": memory.above()}
    return facts | {"scores": scores}


if __name__ == "__main__":
    serve(measure)
