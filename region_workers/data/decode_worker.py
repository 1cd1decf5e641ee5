"""The process that decodes for another: files come on its standard input, pixels leave through memory that both see.

    python -m region_workers.data.decode_worker TRANSFORM_JSON DESCRIPTOR

A request is its head, the list of what the files are, and then their bytes; a reply is a head alone, the positions of
what is unreadable, with the reasons.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

from region_workers.data.decode import Payload, Transform, decode_files

_LENGTH_BYTES = 4


def main() -> None:
    """Answer requests until there are no more."""
    transform = Transform(*json.loads(sys.argv[1]))
    room = memoryview(mmap.mmap(int(sys.argv[2]), 0))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed must not fall among the replies
    try:
        while True:
            unreadable = decode_files(_read_request(sys.stdin.buffer), transform, room)
            write_head(replies, list(unreadable.items()))
            replies.flush()
    except (BrokenPipeError, EOFError):  # whoever asked is gone
        os._exit(0)


def write_request(stream: IO[bytes], payloads: Sequence[Payload]) -> None:
    """Ask for some files to be decoded. Raises BrokenPipeError."""
    write_head(stream, [len(payload) if isinstance(payload, bytes) else payload for payload in payloads])
    stream.write(b"".join(payload for payload in payloads if isinstance(payload, bytes)))
    stream.flush()


def write_head(stream: IO[bytes], value: Any) -> None:
    """A JSON value behind its length."""
    text = json.dumps(value).encode()
    stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)


def read_head(stream: IO[bytes]) -> Any:
    """The value of `write_head`. Raises EOFError."""
    length = int.from_bytes(_read(stream, _LENGTH_BYTES), "little")
    return json.loads(_read(stream, length))


def _read_request(stream: IO[bytes]) -> list[Payload]:
    return [_read(stream, entry) if isinstance(entry, int) else entry for entry in read_head(stream)]


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
