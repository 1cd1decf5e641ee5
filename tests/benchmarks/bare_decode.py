"""The image library alone: one process, pinned to one core, that decodes files as an ordinary script would.

    python tests/benchmarks/bare_decode.py SOURCE RESOLUTION START STOP CORE

SOURCE is a Parquet file or a folder; the images START to STOP of it are RGB, cut to their centre square and resized
where they do not fit. Prints `ready` once the files are at hand, waits for a line, and prints the seconds that it took
and those of the processor.
"""

import os
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


def main() -> None:
    source, (resolution, start, stop, core) = Path(sys.argv[1]), map(int, sys.argv[2:])
    os.sched_setaffinity(0, {core})
    files = files_of(source, start, stop)
    print("ready", flush=True)
    sys.stdin.readline()
    began, processor_began = time.perf_counter(), time.process_time()
    for file in files:
        decode(file, resolution)
    print(time.perf_counter() - began, time.process_time() - processor_began, flush=True)


def files_of(source: Path, start: int, stop: int) -> list[BytesIO] | list[Path]:
    """A table's files lie in memory; a folder's are read when they are opened."""
    if source.is_dir():
        return sorted(source.iterdir())[start:stop]
    return [BytesIO(file.as_py()) for file in pq.read_table(source)["image"][start:stop]]


def decode(file: BytesIO | Path, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, 3]."""
    image = Image.open(file).convert("RGB")
    if image.size != (resolution, resolution):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image)


if __name__ == "__main__":
    main()
