"""Image files made for a benchmark: some hundred distinct pictures, encoded, as a Parquet file or as a folder."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_ROWS_A_GROUP = 1000


def encoded_images(kind: str, size: tuple[int, int], count: int) -> list[bytes]:
    """Pictures with edges, slopes and a little noise, as PNG or JPEG files of width x height."""
    return [_encoded(kind, size, np.random.default_rng(number)) for number in range(count)]


def write_table(path: Path, files: list[bytes], count: int) -> None:
    """A Parquet file of `count` images, the files in turn; in memory there are few of them at a time."""
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for first in range(0, count, _ROWS_A_GROUP):
            rows = range(first, min(first + _ROWS_A_GROUP, count))
            writer.write_table(pa.table({"image": [files[row % len(files)] for row in rows]}))


def write_folder(path: Path, files: list[bytes], count: int, suffix: str) -> None:
    """A folder of `count` images, the files in turn."""
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:07}{suffix}").write_bytes(files[number % len(files)])


def _encoded(kind: str, size: tuple[int, int], generator: np.random.Generator) -> bytes:
    width, height = size
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = picture + generator.normal(0, 4, (height, width, 3)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()
