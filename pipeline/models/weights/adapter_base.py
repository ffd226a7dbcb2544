"""Whether an adapter's base and the policy's model are the same: by SHA-256, by place, or by name. Torch-free."""

import re
from pathlib import Path

from pipeline.errors import RunError, UserError
from pipeline.models.weights.adapter_settings import BASE_NAMED
from pipeline.storage.digests import files_sha256
from pipeline.storage.integrity import BASE_FILES
from pipeline.storage.manifest import MANIFEST, read_manifest

# Words of names that say how a model came about, or where it lies, but not which one it is.
_ANY = frozenset(
    re.findall(
        r"\w+",
        """
    a actor adapter adapters base best bf bfloat checkpoint checkpoints ckpt converted current dpo e epoch exp
    experiment export exported final fine finetune finetuned float folder fp ft full global grpo hf it iter
    iteration last latest llm lm local lora main merged mine model models my new old orpo out output outputs
    policy ppo pretrained ref reference result results reward rm round run s sft snapshot snapshots start step
    steps student target teacher temp test the tmp train trained training tuned v version weights
    """,
    )
)
_CACHED = "models--"


def require_same_model(adapter: str, named: str, base: str, where: str) -> None:
    """Raise ``UserError`` if the base ``named`` by an adapter is not the model ``base``; begins with ``where``.

    The first of these that is known decides: the SHA-256 of the base's weights that a manifest of prefloop beside the
    adapter holds; whether both are one folder; hub names, in full (a snapshot in the hub's cache has its model's); the
    last parts of both, if they say which model it is (not ``policy`` or ``checkpoint-500``).
    """
    differing = _differing_file(Path(adapter), Path(base))
    if differing is not None:
        raise UserError(
            f"{where}: its base was {named[:200]!r} with other weights than those in {base}, as {MANIFEST} there says "
            f"(SHA-256 of {differing}); allowed are adapters of that model (if it is the same, stored otherwise, "
            f"remove that {MANIFEST})"
        )
    if _digests(Path(adapter)) and Path(base).is_dir():
        return
    if not (_same_folder(named, base) or _same_name(named, base)):
        raise UserError(
            f"{where}: an adapter of {named[:200]!r}, but policy.path is {base!r}; allowed are adapters of that model "
            f"(if it is the same under another name, write it as {BASE_NAMED} into its adapter_config.json)"
        )


def _digests(adapter: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights under an adapter that prefloop made, by file; empty without a manifest."""
    if not (adapter / MANIFEST).is_file():
        return {}
    try:
        files = read_manifest(adapter / MANIFEST).metrics.get(BASE_FILES)
    except RunError:
        return {}
    facts = files.items() if isinstance(files, dict) else ()
    return {name: str(one.get("sha256")) for name, one in facts if isinstance(one, dict) and _is_weights(name)}


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _differing_file(adapter: Path, base: Path) -> str | None:
    """Return the first file of ``base`` that is not as it was under the adapter; None if that is not known."""
    known = _digests(adapter)
    if not known or not base.is_dir():
        return None
    files = sorted(file for file in base.iterdir() if file.is_file() and _is_weights(file.name))
    other = next(iter(sorted({file.name for file in files} ^ {*known})), None)
    if other is not None:
        return other
    found = zip(files, files_sha256(files), strict=True)
    return next((file.name for file, digest in found if digest != known[file.name]), None)


def _same_folder(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _same_name(named: str, base: str) -> bool:
    hub, own = _hub_name(named), _hub_name(base)
    if hub is not None and own is not None:
        return hub == own
    last, known = (_last(path, name) for path, name in ((named, hub), (base, own)))
    return last == known and _says_which(last)


def _hub_name(path: str) -> str | None:
    """Return ``owner/model`` in lower case, of a hub name or a snapshot in the hub's cache; None of another folder."""
    parts = Path(path).parts
    cached = next((part for part in parts if part.startswith(_CACHED)), None)
    if cached is not None:
        return cached.removeprefix(_CACHED).replace("--", "/").lower()
    plain = not Path(path).exists() and not path.startswith((".", "/", "~")) and len(parts) <= 2
    return path.lower() if plain else None


def _last(path: str, hub: str | None) -> str:
    return (hub or Path(path).name).rpartition("/")[2].lower()


def _says_which(name: str) -> bool:
    words = (word.rstrip("0123456789") for word in re.split(r"[-_. ]+", name))
    return any(word and word not in _ANY for word in words)
