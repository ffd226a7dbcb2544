"""``prefloop push``: upload a run's policy, adapter or pairs, with a card, to a repository of the Hugging Face hub.

Nothing else in prefloop uploads anything. The token comes from the environment alone.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.commands.export import export_policy
from flows.commands.hub.data_card import pairs_card
from flows.commands.pairs import export_pairs
from pipeline.errors import RunError, UserError
from pipeline.models.weights.adapter_folder import ADAPTER_CONFIG, base_of, write_base
from pipeline.safe_text import redacted
from pipeline.storage.atomic import write_text
from pipeline.storage.run_folder import RunFolder
from pipeline.types.counts import number_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

What = Literal["policy", "adapter", "pairs"]
_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable
_REFUSED = (401, 403)


def push_result(
    root: Path, repository: str, what: What, round_: int | None, *, public: bool, base: str | None, dry_run: bool
) -> str:
    """Upload ``what`` of the run in ``root`` in one commit; return its address.

    What a killed upload has brought there is not sent again.

    Args:
        root: the run folder.
        repository: ``OWNER/NAME``; created if it does not exist.
        what: the policy (an adapter merged), an adapter alone, or pairs with their labels.
        round_: of which round; default: the gate's best or the newest one; of pairs: all.
        public: whether everybody may see it; else it is private, and a public repository is refused.
        base: the repository of an adapter's base model.
        dry_run: only say what would be uploaded.

    Raises:
        UserError: no such run, round or adapter; no token, or one that the hub refuses; a repository that is public.
        RunError: the hub is out of reach, or fails.
    """
    run = RunFolder.existing(root)
    token = os.environ.get(_TOKEN, "").strip()
    if not token and not dry_run:
        raise UserError(f"{_TOKEN}: not set; put a token with write access to {repository} into this variable")
    with tempfile.TemporaryDirectory(prefix=".push.", dir=root.absolute().parent) as scratch:
        folder = Path(scratch) / "content"
        if what == "pairs":
            _write_pairs(run, folder, round_)
        else:
            print(export_policy(root, folder, round_, adapter=what == "adapter").rpartition(":")[0])
            _name_base(folder, base)
        _say_content(folder, repository, public=public)
        if dry_run:
            return "nothing was uploaded (--dry-run)"
        with _hub_errors(repository):
            return _upload(folder, repository, token, what, public=public)


def _write_pairs(run: RunFolder, folder: Path, round_: int | None) -> None:
    made = [number for number in run.rounds() if run.stage(number, "pairs").manifest() is not None]
    if not made or (round_ is not None and round_ not in made):
        raise UserError(f"--round: {run.root} has no pairs{'' if round_ is None else f' of round {round_}'} yet")
    wanted = made if round_ is None else [round_]
    (folder / "data").mkdir(parents=True)
    for number in wanted:
        export_pairs(run.root, folder / "data" / f"round_{number:03}.jsonl", number)
    write_text(folder / "README.md", pairs_card(run, run.config(), wanted))


def _name_base(folder: Path, base: str | None) -> None:
    """Name an adapter's base by a repository: a path of this machine is of no use to others."""
    if not (folder / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise UserError("--base: only with --what adapter; a policy is uploaded whole")
        return
    named = base_of(folder)
    if base is None and (Path(named).is_absolute() or Path(named).is_dir()):
        raise UserError(f"--base: the adapter is one of the folder {named}; name the repository of that model")
    write_base(folder, base or named)


def _say_content(folder: Path, repository: str, *, public: bool) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    sent = f"{number_of(len(files), 'file')}, {number_of(total, 'byte')}"
    print(f"{repository} ({'public' if public else 'private'}): {sent}", file=sys.stderr)
    for file in files:
        print(f"  {file.relative_to(folder)}  {number_of(file.stat().st_size, 'byte')}", file=sys.stderr)


def _upload(folder: Path, repository: str, token: str, what: What, *, public: bool) -> str:
    from huggingface_hub import HfApi

    kind = "dataset" if what == "pairs" else "model"
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
    if not public:
        _require_private(api, repository, kind)
    done = api.upload_folder(
        repo_id=repository, repo_type=kind, folder_path=folder, commit_message=f"{what}, by prefloop"
    )
    return str(done.commit_url)


def _require_private(api: "HfApi", repository: str, kind: str) -> None:
    """Refuse a repository that was there before and that everybody sees."""
    if not api.repo_info(repository, repo_type=kind).private:
        raise UserError(f"{repository}: everybody can see this repository; with --public it is uploaded there")


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    # What huggingface_hub speaks through.
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    again = "the same command goes on, and sends nothing twice"
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{redacted(error)}; allowed: OWNER/NAME") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSED:
            raise UserError(f"{_TOKEN}: the hub refuses it for {repository} ({status})") from None
        raise RunError(f"{repository}: the hub failed ({status}); {again}") from None
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise RunError(f"{repository}: the upload failed ({redacted(cause).splitlines()[0]}); {again}") from None
