"""A round of a million prompts on 64 cards, on paper: the figures of flows/loop/SCALE.md.

python -m tests.studies.scale     # prints the tables; tests/studies/test_scale.py compares the page with them
"""

from dataclasses import dataclass

from pipeline.config import RunConfig
from tests.benchmarks.recorded_runs import table

PROMPTS, SAMPLES, RESPONSE, PROMPT = 1_000_000, 8, 1000, 200
PARAMETERS, CARDS, ENGINES, REWARD_MODEL = 70e9, 64, 8, 8e9
# Assumed, per card: tokens/s of sampling in bfloat16, and FLOP/s that training and scoring reach. Bytes/s of one reader
# of a shared file system; questions/s of a judge.
SAMPLING_RATE, FLOPS, DISK, JUDGE = 1500.0, 400e12, 2e9, 200.0
SHARD, REFERENCE_SHARD = RunConfig.model_fields["shard_size"].default, 1024
# Measured as ``python -m tests.benchmarks.bookkeeping --pieces`` does with 1,000 tokens a response: tokens/s a core.
DECODED, ENCODED, WRITTEN, READ = 10.5e6, 90e6, 3.2e6, 8.3e6
# Bytes a token: of a message, of a prompt's in one, and of a row of samples with random log-probs.
MESSAGE, ASKED, ROW, LOGPROB = 16.0, 5.0, 9.5, 4.0
# Bytes of memory that the driver holds for each prompt.
HELD = 800
# A question's two lines in the ledger, and a row in the cache of labels.
LEDGER, CACHED = 2 * 260, 120
DRAWN = PROMPTS * SAMPLES * RESPONSE
PAIRED = PROMPTS * (2 * RESPONSE + PROMPT)


@dataclass(frozen=True)
class Passage:
    """What moves from one stage to another: bytes, seconds on the way, and of what."""

    way: str
    what: str
    bytes: float
    seconds: float


def passages() -> list[Passage]:
    """In the order of a round."""
    weights = 2 * PARAMETERS
    return [
        Passage("policy → engines", "bfloat16 weights, read by each engine", weights * ENGINES, weights / DISK),
        Passage("prompts → engines", "messages", ASKED * PROMPTS * PROMPT, PROMPTS * PROMPT / ENCODED),
        Passage("engines → driver", "messages, MessagePack", MESSAGE * DRAWN, DRAWN / DECODED),
        Passage("driver → samples", "parquet, ids and log-probs", ROW * DRAWN, DRAWN / WRITTEN),
        Passage("samples → labels", "parquet, read and written again", 2 * ROW * DRAWN, DRAWN / READ + DRAWN / WRITTEN),
        Passage("labels → pairs", "parquet, read; a quarter is written", 1.25 * ROW * DRAWN, DRAWN / READ),
        Passage("pairs → reference", "parquet", ROW * PAIRED, PAIRED / READ),
        Passage("reference → policy", "log-probs", LOGPROB * 2 * PROMPTS * RESPONSE, PAIRED / READ),
        Passage("policy → disk", "bfloat16 and float32 masters", 3 * weights, 3 * weights / (DISK * ENGINES)),
    ]


def work() -> list[tuple[str, float]]:
    """Seconds of the stages that all cards share, or that a judge sets the pace of."""
    passes = (PROMPT + RESPONSE) * PROMPTS * SAMPLES
    return [
        ("sampling", DRAWN / (SAMPLING_RATE * CARDS)),
        ("labels by an 8B reward model", 2 * REWARD_MODEL * passes / (FLOPS * CARDS)),
        ("labels by a judge, one question a response", PROMPTS * SAMPLES / JUDGE),
        ("reference pass", 2 * PARAMETERS * PAIRED / (FLOPS * CARDS)),
        ("training, with activations computed again", 8 * PARAMETERS * PAIRED / (FLOPS * CARDS)),
    ]


def growth() -> list[tuple[str, str, float]]:
    """What there is how many of, by which rule."""
    shards = -(-PROMPTS // SHARD)
    return [
        ("Prefect task runs a round", "stages: constant", 8),
        ("manifests a round", "stages: constant", 8),
        ("files of samples", "prompts / shard_size", shards),
        ("files of labels", "2 · prompts / shard_size", 2 * shards),
        ("files of a reference", "pairs / 1,024", -(-PROMPTS // REFERENCE_SHARD)),
        ("connections of the driver", "engines + trainer + Prefect", ENGINES + 2),
        ("driver's memory for prompts, MB", f"{HELD} bytes a prompt", HELD * PROMPTS / 1e6),
        ("spending.jsonl a round with a judge, MB", "two lines a question", LEDGER * PROMPTS * SAMPLES / 1e6),
        ("labels.sqlite a round with a judge, MB", "a row a question", CACHED * PROMPTS * SAMPLES / 1e6),
    ]


def idle() -> float:
    """Seconds in which one core works on files between stages, and no card does: from samples to training."""
    seconds = {passage.way: passage.seconds for passage in passages()}
    return sum(
        seconds[way] for way in ("samples → labels", "labels → pairs", "pairs → reference", "reference → policy")
    )


def load() -> float:
    """Share of a core that the driver needs while all engines sample."""
    seconds = {passage.way: passage.seconds for passage in passages()}
    return (seconds["engines → driver"] + seconds["driver → samples"]) / dict(work())["sampling"]


def tables() -> str:
    """Markdown, as it stands on the page."""
    moved = [[p.way, p.what, f"{p.bytes / 1e9:,.0f}", f"{p.seconds:,.0f}"] for p in passages()]
    spent = [[name, f"{seconds:,.0f}", f"{seconds / 3600:.1f}"] for name, seconds in work()]
    grows = [[what, rule, f"{number:,.0f}"] for what, rule, number in growth()]
    return "\n\n".join(
        [
            table(["from → to", "what", "GB", "seconds"], moved),
            table(["work of a round", "seconds", "hours"], spent),
            table(["what grows", "with", "here"], grows),
            f"While all engines sample, the driver needs {load():.2f} of a core. Between sampling and training, one "
            f"core reads and writes files for {idle() / 3600:.1f} hours.",
        ]
    )


if __name__ == "__main__":
    print(tables())
