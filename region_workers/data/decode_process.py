"""Decoding in a process of its own: files come on its standard input, pixels leave through memory that both see."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from region_workers.data.decode import Decoded, Payload, Pixels, Transform, decode_files

_LENGTH_BYTES = 4


class DecodeProcess:
    """The asking end of such a process; one request, of at most `most_files` files, at a time.

    A process and not a thread: of a small image's decoding a good part is Python. And not one of multiprocessing's:
    a spawned one would import the program's main module again, a forked one is unsafe beside torch.
    """

    def __init__(self, transform: Transform, most_files: int) -> None:
        room = os.memfd_create("pixels")
        os.ftruncate(room, most_files * int(np.prod(transform.shape)))
        self._room = _mapped(room, transform)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, json.dumps(transform), str(room)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[room],
            env={**os.environ, "PYTHONPATH": _import_path(), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the program; this process ends with its input
        )
        os.close(room)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def decode(self, payloads: Sequence[Payload]) -> Decoded:
        """`decode_files` over there. Raises ChildProcessError if the process has died."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            _write_head(requests, [len(p) if isinstance(p, bytes) else p for p in payloads])
            requests.write(b"".join(payload for payload in payloads if isinstance(payload, bytes)))
            requests.flush()
            unreadable = dict(_read_head(replies))
        except (BrokenPipeError, EOFError) as error:
            raise ChildProcessError(f"exit status {self._process.wait()}") from error
        return Decoded(self._room[: len(payloads) - len(unreadable)].copy(), unreadable)


def main() -> None:
    """Answer requests until there are no more."""
    transform = Transform(*json.loads(sys.argv[1]))
    room = _mapped(int(sys.argv[2]), transform)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed must not fall among the replies
    try:
        while True:
            files = [_read_payload(sys.stdin.buffer, entry) for entry in _read_head(sys.stdin.buffer)]
            decoded = decode_files(files, transform, room)
            _write_head(replies, list(decoded.unreadable.items()))
            replies.flush()
    except (BrokenPipeError, EOFError):  # whoever asked is gone
        os._exit(0)


def _mapped(descriptor: int, transform: Transform) -> Pixels:
    """The shared memory as pixels [N, H, W, C]."""
    return np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8).reshape(-1, *transform.shape)


def _read_payload(requests: IO[bytes], entry: int | str | None) -> Payload:
    """A file's bytes as they follow the head; a path as it stands there, or nothing."""
    return _read(requests, entry) if isinstance(entry, int) else entry


def _write_head(stream: IO[bytes], value: Any) -> None:
    text = json.dumps(value).encode()
    stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)


def _read_head(stream: IO[bytes]) -> Any:
    length = int.from_bytes(_read(stream, _LENGTH_BYTES), "little")
    return json.loads(_read(stream, length))


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _import_path() -> str:
    """Where this process finds its modules, so that the other finds the same ones."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)


if __name__ == "__main__":
    main()
