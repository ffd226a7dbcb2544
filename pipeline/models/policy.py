"""Policies on disk: Hugging Face folders, safetensors only, with the tokenizer and a weight probe."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from pipeline.errors import RunError, UserError
from pipeline.models.architectures import as_written, auto_class, make_exact, round_weights, switch_noise_off
from pipeline.models.chat import Chat
from pipeline.models.foreign import model_settings, refused
from pipeline.models.handshake import probe_sequences, write_probe
from pipeline.models.loading.companions import HUB_FILES, UNREAD, copy_companions
from pipeline.models.loading.language_model import require_causal
from pipeline.models.loading.tensor_names import require_tensors
from pipeline.models.loading.weight_files import require_no_adapter_beside
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.adapter_folder import base_of, is_adapter
from pipeline.models.weights.held_weights import TORCH_DTYPES, held_bits, loading_options, make_steady
from pipeline.models.weights.lora import load_adapter, merge_adapter
from pipeline.models.weights.weight_format import FLOAT32, WeightDtype, WeightFormat, stored_dtype
from pipeline.storage.atomic import write_json
from pipeline.storage.integrity import MASTERS
from pipeline.storage.shards import SHARD_SIZE


def load_policy(
    path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    held: WeightFormat = FLOAT32,
    trained: bool = False,
) -> Any:
    """The causal language model in the folder (or under the hub name) ``path``, in evaluation mode.

    Dropout and noise in the model's own config are set to 0, since log-probabilities of policy and reference must be
    comparable (an adapter has its own dropout); ``save_policy`` writes them as they were. Of an image-text model, only
    the language model is trainable.

    Args:
        path: also an adapter's folder: then a peft model, on the weights that it names.
        revision: of a hub name.
        trust_remote_code: run code that ships with the model.
        held: how weights are held; no copy in another precision is ever made.
        trained: of an adapter: whether it is trainable.

    Raises:
        UserError: no such folder, no config.json or weights in it, not a causal language model, tensors
            that are missing, unknown or of other shapes.
    """
    if is_adapter(path):
        base = load_policy(base_of(path), trust_remote_code=trust_remote_code, held=held)
        base.requires_grad_(False)
        return load_adapter(base, path, trained=trained).eval()
    folder = Path(path)
    if folder.exists() or folder.is_absolute() or path.startswith("."):
        _require_model_files(folder)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    wanted = loading_options(held)
    with refused(f"{path}: cannot load this model"):
        settings = AutoConfig.from_pretrained(path, **options)
        switch_noise_off(settings)
        model, loading = auto_class(settings).from_pretrained(
            path,
            config=settings,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **wanted,
            **options,
        )
    require_tensors(path, loading)
    make_steady(model, held)
    with refused(path):
        exact = make_exact(model)
        require_causal(exact, path)
        return exact


def local_folder(path: str, revision: str | None = None) -> Path:
    """The model folder ``path``, absolute; a hub name is fetched (or found in the local cache) at ``revision``.

    Raises:
        UserError: neither a local folder nor a name that the hub or its cache knows.
    """
    if Path(path).exists():
        return Path(path).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=[*HUB_FILES], ignore_patterns=[*UNREAD]))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: no such model folder here, and not found on the hub: {reason}") from None


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def load_for_scoring(path: str, held: WeightFormat = FLOAT32, *, trust_remote_code: bool = False) -> Any:
    """``load_policy`` on the accelerator if there is one, for passes without gradients. Raises the same errors.

    Nothing of it requires a gradient, since autocast would keep a 16-bit copy of every weight that does.
    """
    model = load_policy(path, trust_remote_code=trust_remote_code, held=held).requires_grad_(False)
    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def _require_model_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in this model folder")
    require_no_adapter_beside(folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors weights in this model folder (other formats are not read)")


def save_policy(
    model: Any,
    folder: Path,
    *,
    tokenizer_source: str,
    chat: Chat,
    dtype: WeightDtype | None = None,
    masters: bool = False,
) -> PreTrainedModel:
    """Write ``model`` as a Hugging Face folder, its adapter merged in if it has one.

    Args:
        model: changed by the merge; continue with the returned model.
        folder: created if missing.
        tokenizer_source: the model folder (or hub name) whose tokenizer, chat template and generation
            config are copied to the weights, unchanged. Its config.json says which dropout and noise are written.
        chat: of that tokenizer; determines which ids the weight probe leaves out.
        dtype: that the weights are rounded to and stored in; None: as they are.
        masters: if rounding loses anything, also write the float32 weights, into the folder ``MASTERS`` in ``folder``,
            for the training that goes on from them.
    """
    plain = merge_adapter(model)
    folder.mkdir(parents=True, exist_ok=True)
    if dtype is not None and TORCH_DTYPES[dtype] != plain.dtype:
        if masters and plain.dtype == torch.float32:
            _save_weights(plain, folder / MASTERS, tokenizer_source)
        round_weights(plain, TORCH_DTYPES[dtype])
    _save_weights(plain, folder, tokenizer_source)
    copy_companions(tokenizer_source, folder)
    save_probe(plain, chat, folder)
    return plain


def _save_weights(plain: PreTrainedModel, folder: Path, tokenizer_source: str) -> None:
    generation = plain.generation_config
    # transformers refuses to save what it has loaded, such as a temperature without do_sample.
    plain.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    with as_written(plain.config, tokenizer_source):
        plain.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    _keep_class_name(Path(tokenizer_source), folder)
    plain.generation_config = generation
    generation.to_json_file(folder / "generation_config.json")


def _keep_class_name(source: Path, folder: Path) -> None:
    """Write the name of the model's class as the ``source`` has it, if it differs in case alone.

    transformers calls PhiMoEForCausalLM Phimoe..., by which vLLM does not know it.
    """
    named = model_settings(source / "config.json").get("architectures")
    settings = model_settings(folder / "config.json")
    written = settings.get("architectures")
    if named != written and str(named).lower() == str(written).lower():
        write_json(folder / "config.json", {**settings, "architectures": named})


def save_probe(model: Any, chat: Chat, folder: Path) -> None:
    """Write ``folder/probe.json``: log-probs of the probe tokens under ``model`` as it is in memory."""
    # Padded embeddings have rows without a token, and engines refuse their ids.
    rows = min(model.get_input_embeddings().weight.shape[0], chat.vocab_size)
    sequences = probe_sequences(rows, chat.special_ids)
    scores = score_sequences(model, sequences)
    if not all(math.isfinite(logp) for row in scores for logp in row):
        raise RunError("the model's log-probabilities of probe tokens are not finite: weights are damaged or diverged")
    write_probe(folder, sequences, scores, str(model.dtype).removeprefix("torch."), held_bits(model))


@torch.no_grad()
def score_sequences(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Natural-log probabilities of tokens 1..T-1 of each sequence given those before; all have equal length."""
    ids = torch.tensor(sequences, device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    scores: list[list[float]] = TokenLogps(model)(ids, mask).policy[:, 1:].tolist()
    return scores


def write_merged(
    path: str, folder: Path, *, trust_remote_code: bool = False, dtype: WeightDtype | None = None
) -> PreTrainedModel:
    """Write the model under the adapter in ``path``, with the adapter merged in, as a Hugging Face folder.

    Its weights have the precision that the files of the model under it have (or ``dtype``), however training holds
    them. Log-probs of the merged weights differ from those of the adapter beside them by their rounding.
    """
    base = base_of(path)
    held = WeightFormat(dtype or stored_dtype(base))
    merged = merge_adapter(load_policy(path, trust_remote_code=trust_remote_code, held=held))
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(merged, folder, base)
    copy_companions(base, folder)
    return merged
