"""Images in Parquet, one a row, as the datasets library reads them, with the latents for training. Torch-free."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import RunError
from pipeline.storage.parquet.tables import Row, TableWriter
from pipeline.storage.rows import read_row_file, read_rows
from pipeline.storage.seals import Seal
from pipeline.types import DrawnImage, Response

# Folder of the images beside the rows that name them.
IMAGES = "images"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STORED_IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("seed", pa.int64()),
        ("image", IMAGE),
        ("latents", pa.list_(pa.float32())),
        ("shape", pa.list_(pa.int32())),
    ]
)
# Small row groups: a reader of one image does not read a shard of them.
_ROW_GROUP = 32


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of a run: ``latents`` are float32, of ``shape`` (channels, height, width); ``seed``: -1 if imported."""

    id: str
    prompt_id: str
    seed: int
    png: bytes
    latents: NDArray[np.float32]
    shape: tuple[int, int, int]


def image_response(id: str, image: DrawnImage | None = None) -> Response:
    """An image as a response; see ``Response``."""
    return Response(id, (int(id[:7], 16), int(id[7:14], 16)), (), "stop", image=image)


def write_images(file: Path, images: Iterable[tuple[str, DrawnImage]], seal: Seal | None = None) -> int:
    """Write (prompt id, image) to one file, which appears when it is whole and sealed; return their number."""
    with TableWriter(file, STORED_IMAGES, seal, row_group=_ROW_GROUP) as table:
        for prompt_id, image in images:
            table.add(_row(prompt_id, image))
    return table.rows


def read_images(folder: Path) -> Iterator[StoredImage]:
    """Yield the images of a folder, file by file. Raises ``RunError`` with the name of an unreadable file."""
    return map(_stored, read_rows(folder))


def read_image_file(file: Path) -> Iterator[StoredImage]:
    """Yield the images of one shard. Raises as ``read_images``."""
    return map(_stored, read_row_file(file))


def _row(prompt_id: str, image: DrawnImage) -> Row:
    return {
        "id": image.id,
        "prompt_id": prompt_id,
        "seed": image.seed,
        "image": {"bytes": image.png, "path": f"{image.id}.png"},
        "latents": np.frombuffer(image.latents, dtype="<f4"),
        "shape": image.shape,
    }


def _stored(row: Row) -> StoredImage:
    shape = tuple(row["shape"])
    latents = np.asarray(row["latents"], dtype=np.float32)
    if len(shape) != 3 or latents.size != shape[0] * shape[1] * shape[2]:
        raise RunError(f"image {row['id']}: {latents.size} latents, but shape {' x '.join(map(str, shape))}")
    return StoredImage(row["id"], row["prompt_id"], row["seed"], row["image"]["bytes"], latents, shape)


@contextmanager
def parquet_file(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a file whose pages are checked. Raises ``RunError`` if it cannot be read."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            yield table
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


class StoredPictures(Mapping[str, bytes]):
    """The files of stored images by id, read row group by row group as they are asked for."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Read the ids in ``folders``. Raises ``RunError`` for an unreadable file."""
        self._places: dict[str, tuple[Path, int]] = {}
        self._held: tuple[tuple[Path, int], dict[str, bytes]] | None = None
        for file in (file for folder in folders for file in sorted(folder.glob("*.parquet"))):
            with parquet_file(file) as table:
                for group in range(table.num_row_groups):
                    for id_ in table.read_row_group(group, ["id"])["id"].to_pylist():
                        self._places.setdefault(id_, (file, group))

    def __getitem__(self, id_: str) -> bytes:
        place = self._places[id_]
        if self._held is None or self._held[0] != place:
            with parquet_file(place[0]) as table:
                rows = table.read_row_group(place[1], ["id", "image"]).to_pylist()
            self._held = place, {row["id"]: row["image"]["bytes"] for row in rows}
        return self._held[1][id_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
