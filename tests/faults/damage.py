"""Ways to damage a file: a flipped bit, a cut at each kind of boundary, emptied, deleted, another file in its place."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Place = Callable[[bytes], int]


@dataclass(frozen=True)
class Damage:
    """One kind of damage; `harm(path, other)` does it to the file at `path`, `other` being a good one of its kind."""

    name: str
    harm: Callable[[Path, Path], None]

    def __str__(self) -> str:
        return self.name


def damages_of(name: str, swaps: bool = True) -> tuple[Damage, ...]:
    """Every kind of damage to a file of this name."""
    flips = [Damage(f"bit flipped {where}", _flip(place)) for where, place in _FLIPS.items()]
    cuts = [Damage(f"cut {where}", _cut(place)) for where, place in _boundaries(name).items()]
    gone = [Damage("emptied", _cut(lambda _: 0)), Damage("deleted", lambda path, _: path.unlink())]
    return (*flips, *cuts, *gone, *([Damage("swapped", _swap)] if swaps else ()))


def flip_bit(path: Path, position: int, bit: int) -> None:
    """Flip one bit of the byte at `position`."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def flip_some_bit(path: Path, seed: int) -> None:
    """Flip a bit chosen by the seed."""
    chosen = random.Random(seed)
    flip_bit(path, chosen.randrange(path.stat().st_size), chosen.randrange(8))


def _flip(place: Place) -> Callable[[Path, Path], None]:
    return lambda path, _: flip_bit(path, place(path.read_bytes()), 0)


def _cut(place: Place) -> Callable[[Path, Path], None]:
    def harm(path: Path, other: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: place(data)])

    return harm


def _swap(path: Path, other: Path) -> None:
    assert path.read_bytes() != other.read_bytes(), f"{other} is no other file than {path}"
    path.write_bytes(other.read_bytes())


def _last(data: bytes) -> int:
    """Before the last byte that says something; a line's end at the end of a text does not."""
    return len(data.rstrip()) - 1 if data[:1] == b"{" else len(data) - 1


def _header_end(data: bytes) -> int:
    """Of safetensors: eight bytes of length, then the header."""
    return 8 + int.from_bytes(data[:8], "little")


def _tensor_end(data: bytes) -> int:
    """Of safetensors: where the first of the tensors ends."""
    header = json.loads(data[8 : _header_end(data)])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return _header_end(data) + min(end for end in ends if end)


def _npy_header_end(data: bytes) -> int:
    return 10 + int.from_bytes(data[8:10], "little")


_FLIPS: Mapping[str, Place] = {
    "at the start": lambda data: 0,
    "early": lambda data: len(data) // 7,
    "in the middle": lambda data: len(data) // 2,
    "at the end": lambda data: _last(data),
}
_SAFETENSORS: Mapping[str, Place] = {
    "in the header's length": lambda data: 4,
    "in the header": lambda data: (8 + _header_end(data)) // 2,
    "at the header's end": _header_end,
    "at a tensor's end": _tensor_end,
    "before the last byte": _last,
}
_NPY: Mapping[str, Place] = {
    "in the magic number": lambda data: 3,
    "in the header": lambda data: _npy_header_end(data) // 2,
    "at the header's end": _npy_header_end,
    "in the rows": lambda data: (len(data) + _npy_header_end(data)) // 2,
    "before the last byte": _last,
}
_FOOTED: Mapping[str, Place] = {  # Parquet, Arrow and zip: what is where stands at the end
    "after the magic number": lambda data: 8,
    "in the middle": lambda data: len(data) // 2,
    "in the footer": lambda data: len(data) - 12,
    "before the last byte": _last,
}
_PNG: Mapping[str, Place] = {
    "at the signature's end": lambda data: 8,
    "at the header's end": lambda data: 33,
    "before the end chunk": lambda data: len(data) - 12,
    "before the last byte": _last,
}
_TEXT: Mapping[str, Place] = {
    "after the first byte": lambda data: 1,
    "in the middle": lambda data: len(data) // 2,
    "before the last byte": _last,
}
_BY_SUFFIX = {
    ".safetensors": _SAFETENSORS,
    ".npy": _NPY,
    ".parquet": _FOOTED,
    ".arrow": _FOOTED,
    ".npz": _FOOTED,
    ".png": _PNG,
}


def _boundaries(name: str) -> Mapping[str, Place]:
    return _BY_SUFFIX.get(Path(name).suffix, _TEXT)
