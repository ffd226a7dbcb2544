"""From the work folder to the store: complete stages, each sealed shard, what was removed on purpose. Torch-free.

A stage's files go first and its manifest last, by a write that fails if there is one: a manifest in the store names
files that are there. Nothing is renamed.
"""

from collections.abc import Mapping
from pathlib import Path

from flows.loop.object_store.address import StoreLink
from flows.loop.object_store.client import LostWriteError, ObjectStore, StoredObject
from flows.loop.object_store.own_files import publish_own_files
from flows.loop.object_store.pull import in_order
from flows.loop.object_store.set_aside import stages_set_aside
from flows.run_folder.redo import FOLDER
from pipeline.errors import RunError
from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import FREED, MANIFEST, DamagedError, Freed, read_manifest
from pipeline.storage.run_folder import RunFolder, Stage
from pipeline.storage.seals import MARKER, SEALS, sealed_files


class Publisher:
    """What of ``run`` is in the store, and what goes there next; the caller holds the URL."""

    def __init__(
        self, store: ObjectStore, run: RunFolder, manifests: Mapping[str, str], listing: Mapping[str, StoredObject]
    ) -> None:
        """``manifests``: SHA-256 by title of the manifests in the store; ``listing``: its objects."""
        self._store = store
        self._run = run
        self._manifests = dict(manifests)
        self._freed = {name.removesuffix(f"/{FREED}") for name in listing if name.endswith(f"/{FREED}")}
        self._sealed: dict[str, str] = {}
        self._journals: dict[str, bytes] = {}
        self._begun = {name.partition(".partial/")[0] for name in listing if ".partial/" in name}

    def publish_stages(self) -> None:
        """Publish the complete stages that the store lacks, and repeat there what was removed here on purpose.

        Raises:
            RunError: another process has published a stage of this run: the lease is lost.
            StoreError: the store does not answer, or refuses.
        """
        self._move_aside()
        for stage in in_order(self._run, [stage.title for stage in self._run.stages()]):
            if stage.title not in self._manifests:
                self._publish(stage)
            freed = stage.freed()
            if freed is not None and stage.title not in self._freed:
                self._free(stage, freed)
        for title in sorted(self._begun):
            if not (self._run.root / f"{title}.partial").exists():
                self._remove_below(f"{title}.partial/")
                self._begun.discard(title)

    def publish_own(self, link: StoreLink) -> None:
        """Publish the run's own files that have changed. Raises ``StoreError``."""
        publish_own_files(self._store, self._run.root, link)

    def publish_sealed(self) -> None:
        """Publish the sealed files of stages that are being written. Raises ``StoreError``."""
        for stage in self._run.begun():
            for journal in sorted(stage.partial.rglob(SEALS)):
                try:
                    self._publish_sealed(stage, journal)
                except FileNotFoundError:
                    # The stage is complete, and has its own name.
                    break

    def _publish(self, stage: Stage) -> None:
        # Raises if a file is missing: what is damaged here is not published.
        manifest, freed = stage.require(), stage.freed()
        removed = set() if freed is None else set(freed.files)
        try:
            for name, facts in manifest.files.items():
                if name not in removed:
                    self._store.upload(f"{stage.title}/{name}", stage.folder / name, str(facts["sha256"]))
            self._create_manifest(stage)
        except LostWriteError:
            raise RunError(
                f"{self._store}/{stage.title}: another process has published this stage; the run was taken over. The "
                f"local stage is intact in {stage.folder}"
            ) from None
        self._manifests[stage.title] = manifest.sha256

    def _create_manifest(self, stage: Stage) -> None:
        name, content = f"{stage.title}/{MANIFEST}", (stage.folder / MANIFEST).read_bytes()
        try:
            self._store.create(name, content)
        except LostWriteError:
            found = self._store.read(name)
            # The answer to this process's own write may have been lost.
            if found is None or found[0] != content:
                raise

    def _free(self, stage: Stage, freed: Freed) -> None:
        self._store.write(f"{stage.title}/{FREED}", (stage.folder / FREED).read_bytes())
        self._store.remove([f"{stage.title}/{name}" for name in freed.files])
        self._freed.add(stage.title)

    def _move_aside(self) -> None:
        """Move the stages that ``--from`` has set aside here; without its manifest, a stage is none."""
        aside = stages_set_aside(self._run.root)
        gone = [title for title, sha256 in self._manifests.items() if (title, sha256) in aside]
        for stage in reversed(in_order(self._run, gone)):
            place = _place_aside(self._run.root, stage, self._manifests[stage.title])
            names = [name for name in self._store.listing() if name.startswith(f"{stage.title}/")]
            for name in names:
                self._store.copy(name, f"{place}{name.removeprefix(stage.title)}")
            manifest = f"{stage.title}/{MANIFEST}"
            self._store.remove([manifest, *(name for name in names if name != manifest)])
            del self._manifests[stage.title]

    def _publish_sealed(self, stage: Stage, journal: Path) -> None:
        content = journal.read_bytes()
        name = journal.relative_to(self._run.root).as_posix()
        if self._journals.get(name) == content:
            return
        marker = stage.partial / MARKER
        self._begun.add(stage.title)
        self._store.write(f"{stage.title}.partial/{MARKER}", marker.read_bytes())
        whole = True
        for told, sha256 in sealed_files(content).items():
            file = journal.parent / told
            stored = file.relative_to(self._run.root).as_posix()
            if self._sealed.get(stored) == sha256:
                continue
            # A file is sealed before it has its name.
            if not file.is_file() or file_sha256(file) != sha256:
                whole = False
                continue
            try:
                self._store.upload(stored, file, sha256)
            except LostWriteError as error:
                raise RunError(f"{error}; the run was taken over") from None
            self._sealed[stored] = sha256
        self._store.write(name, content)
        if whole:
            self._journals[name] = content

    def _remove_below(self, base: str) -> None:
        names = [name for name in self._store.listing() if name.startswith(base)]
        # Without its marker, nobody continues from the rest.
        marker = f"{base}{MARKER}"
        self._store.remove([*([marker] if marker in names else []), *(name for name in names if name != marker)])


def _place_aside(root: Path, stage: Stage, sha256: str) -> str:
    for file in (root / FOLDER).glob(f"*/{stage.title}/{MANIFEST}"):
        try:
            if read_manifest(file).sha256 == sha256:
                return file.parent.relative_to(root).as_posix()
        except DamagedError:
            continue
    return f"{FOLDER}/{sha256[:16]}/{stage.title}"
