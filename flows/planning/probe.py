"""Training's memory, before training runs: parameters are counted without weights, the rest is measured.

Weights, gradients and AdamW's moments follow from the parameters. What forward and backward passes hold besides these,
and what the allocator cannot give back in between, is written down nowhere. So it is measured on the trainer itself,
with random weights of the model's own width in a few layers, and extrapolated to all layers, each of which adds the
same. Each measurement needs its own process (``flows.planning.measure``).
"""

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from flows.planning.arithmetic import GRADIENT_BYTES, OFF_DEVICE, STATE_BYTES, WEIGHT_BYTES, ParameterCounts
from pipeline.config import Lora, Optimisation
from pipeline.losses import Loss
from pipeline.models.architectures import auto_class, make_exact, switch_noise_off
from pipeline.models.chat import Chat
from pipeline.models.foreign import refused
from pipeline.models.policy import load_policy, save_policy, save_probe
from pipeline.models.weights.lora import add_adapter
from pipeline.models.weights.weight_format import WeightDtype
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.collate import plan_epoch
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.optimiser import trainable
from pipeline.training.reference import reference_values
from pipeline.training.train import StepReport, train
from pipeline.training.trainee import Trainee

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Limits of a measurement. What libraries keep for each shape that they meet grows over many steps.
_SECONDS, MOST_STEPS, PASSES = 4.0, 16, 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of a few steps: peak bytes beyond weights, gradients and moments, and tokens a second."""

    beyond: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Probed:
    """The parts of a training that its memory depends on.

    Attributes:
        settings: the transformers config of the policy.
        loss: the training loss.
        lora: the adapter that is trained instead of the policy, if any.
        beside: whether a reference model of the policy's shape is loaded together with the policy.
        trust_remote_code: run code that ships with the model.
        held: dtype of the weights; an adapter's are float32. Quantised weights are measured in 16 bits.
    """

    settings: Any
    loss: Loss
    lora: Lora | None = None
    beside: bool = False
    trust_remote_code: bool = False
    held: WeightDtype = "float32"

    @property
    def layers(self) -> int:
        """Number of layers of the whole model."""
        return int(self.settings.get_text_config().num_hidden_layers)

    def model(self, layers: int, device: str = "cpu") -> Any:
        """The policy with ``layers`` layers and random weights (none on the device ``meta``)."""
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _random(with_layers(self.settings, layers), self.trust_remote_code, DTYPES[self.held])
            return model if self.lora is None else add_adapter(model, self.lora, seed=0)

    def parameters(self, layers: int) -> ParameterCounts:
        """Parameters of a model with ``layers`` layers, counted without weights; tied ones count once."""
        model, text = self.model(layers, "meta"), self.settings.get_text_config()
        beside = AuxiliaryModules(self.loss.composition, text.hidden_size, layers, text.hidden_size, seed=0)
        return ParameterCounts(
            total=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in trainable(model).values()),
            beside=sum(p.numel() for p in beside.parameters()),
        )


DTYPES: Mapping[WeightDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _random(settings: Any, trust_remote_code: bool, dtype: torch.dtype = torch.float32) -> Any:
    make: Any = auto_class(settings).from_config
    return make_exact(make(settings, dtype=dtype, trust_remote_code=trust_remote_code))


def with_layers(settings: Any, layers: int) -> Any:
    """Copy a transformers config, but with its first ``layers`` layers only."""
    fewer = copy.deepcopy(settings)
    text = fewer.get_text_config()
    count = text.num_hidden_layers
    for name, value in text.to_dict().items():
        # Values given for each layer, such as its kind of attention.
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return fewer


def few_examples(examples: Sequence[Example], settings: Optimisation, seed: int) -> tuple[list[Example], int]:
    """Return examples to measure with, and their batch size.

    A batch holds the largest forward pass of the run's first batch, which is its largest, and the ``PASSES`` after it:
    these also see gradients and what the allocator could not give back. Others follow while there is time.
    """
    lengths, sizes = [e.length for e in examples], [e.distinct_tokens for e in examples]
    order = plan_epoch(lengths, sizes, settings.batch_size, seed, 0)
    tokens = settings.micro_batch_tokens or (16384 if torch.cuda.is_available() else 1024)
    cut = Cut(settings.micro_batch_size, tokens, settings.packing)
    passes = list(micro_batches([examples[i] for i in order[0]], cut))
    largest = max(range(len(passes)), key=lambda i: passes[i].computed)
    first = min(largest, max(0, len(passes) - PASSES))
    worst = [e for one in passes[first : first + PASSES] for e in one.examples]
    taken = {e.id for e in worst}
    others = (examples[i] for batch in order for i in batch if examples[i].id not in taken)
    return [*worst, *islice(others, (MOST_STEPS - 1) * len(worst))], len(worst)


def train_a_little(
    probed: Probed, examples: Sequence[Example], batch_size: int, settings: Optimisation, layers: int
) -> Measured:
    """Measure steps of a model with ``layers`` layers: at least two, and more for up to ``_SECONDS``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = probed.model(layers).to(device)
    reference = replace(probed, lora=None).model(layers).to(device) if probed.beside else None
    epochs = 1.0 if len(examples) > batch_size else 2.0
    some = {"batch_size": batch_size, "epochs": epochs, "max_steps": None, "checkpoint_every": 0}
    rates: list[float] = []
    started = time.monotonic()

    def on_step(step: StepReport) -> None:
        rates.append(step.tokens_per_second)
        if len(rates) > 1 and time.monotonic() - started > _SECONDS:
            raise _EnoughError

    def work() -> None:
        asked = settings.model_copy(update=some)
        with suppress(_EnoughError):
            train(Trainee(model, reference), examples, probed.loss, asked, seed=0, on_step=on_step)

    peak, counted = peak_growth(work), probed.parameters(layers)
    # On an accelerator, only its own tensors are measured.
    seen = not (torch.cuda.is_available() and settings.optimiser in OFF_DEVICE)
    state = STATE_BYTES[settings.optimiser] if seen else 0
    stepped = (counted.trained + counted.beside) * (GRADIENT_BYTES + state)
    # The first step also compares packed with padded rows.
    return Measured(max(0, peak - stepped - counted.beside * WEIGHT_BYTES), statistics.median(rates[1:]))


class _EnoughError(Exception):
    """A measurement has used up its time."""


def score_a_little(probed: Probed, examples: Sequence[Example], settings: Optimisation) -> int:
    """Bytes that a pass without gradient over ``examples`` adds: the same for any number of layers; none keeps any."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = replace(probed, lora=None).model(1).to(device)
    rows = sum(len(e.continuations) for e in examples)
    return peak_growth(lambda: reference_values(model, examples, rows, settings.dtype))


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which ``work`` raises this process's peak memory, or on CUDA the peak of its tensors."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if CLEAR.exists():
        # 5: "reset the peak resident set size" (proc_pid_clear_refs(5)).
        CLEAR.write_text("5", encoding="ascii")
    before = _peak()
    work()
    return _peak() - before


def _peak() -> int:
    if STATUS.exists():
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def classifier_parameters(path: str, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """Return (parameters, hidden size) of the reward model ``path`` from its config alone.

    Raises:
        UserError: no config of a known model there.
    """
    shape = model_shape(path, "scorer.path", trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        make: Any = AutoModelForSequenceClassification.from_config
        model = make(shape, trust_remote_code=trust_remote_code)
    return sum(p.numel() for p in model.parameters()), int(shape.get_text_config().hidden_size)


def model_shape(path: str, field: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The transformers config of a model folder or hub name, with dropout off; ``field`` is the setting with the path.

    Raises:
        UserError: no config of a known model there.
    """
    with refused(f"{field}: {path}: no config.json of a model there"):
        settings = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    switch_noise_off(settings)
    return settings


def model_to_sample_from(path: str, shape: Any, chat: Chat, folder: Path, *, trust_remote_code: bool = False) -> str:
    """Return ``path`` if it has weights, else ``folder`` with random ones of ``shape``. ``folder`` gets a probe."""
    origin = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if not origin.is_dir() or any(origin.glob("*.safetensors")):
        model = load_policy(path, trust_remote_code=trust_remote_code)
        save_probe(model, chat, folder)
        return path
    model = _random(shape, trust_remote_code)
    save_policy(model, folder, tokenizer_source=path, chat=chat)
    return str(folder)
