"""The bases of every model here, frozen, unknown keys refused, some with a seal; and the kinds of text in them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.digest import digest
from schemas.errors import holds_secret, shown, user_error

_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4000  # of Linux' file systems; 4096 with what is put below a folder
_SEAL = "seal"


def fault_of_place(place: str) -> str | None:
    """What would have been expected of a path or URL that no system can take, or that holds a secret; else None."""
    try:
        encoded = place.encode()
    except UnicodeEncodeError:
        return "a path in UTF-8"
    if b"\0" in encoded:
        return "a path without null characters"
    if len(encoded) > _MOST_PATH_BYTES or max(map(len, encoded.split(b"/"))) > _MOST_NAME_BYTES:
        return f"a path of at most {_MOST_PATH_BYTES} bytes, and {_MOST_NAME_BYTES} in each name"
    if holds_secret(place):
        return "a URL without a key in it: the environment gives it (AWS_ACCESS_KEY_ID, ...), or the machine's role"
    return None


def check_place(field: str, place: str | Path) -> None:
    """Raise UserError, naming `field`, if there can be no such path or URL, or if it holds a secret."""
    fault = fault_of_place(str(place))
    if fault is not None:
        raise user_error(field, shown(place), fault, "Give another.")


class Section(BaseModel):
    """A part of a plan or a record: immutable, strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _check_text(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("text", "text of printable characters")
    return text


def _check_place(text: str) -> str:
    fault = fault_of_place(text)
    if fault is not None:
        raise PydanticCustomError("text", "{fault}", {"fault": fault})
    return text


Text = Annotated[str, Field(max_length=255), AfterValidator(_check_text)]
Place = Annotated[
    str, Field(min_length=1, max_length=4000), AfterValidator(_check_place)
]  # a path or a name on the hub


class Sealed(Section):
    """A record whose JSON ends with a digest of all the rest, which is checked where it is read."""

    @model_serializer(mode="wrap")
    def _write_seal(self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {**values, _SEAL: digest(values)} if info.mode == "json" else values

    @model_validator(mode="before")
    @classmethod
    def _check_seal(cls, values: Any) -> Any:
        if not isinstance(values, dict) or _SEAL not in values:
            return values
        if not seal_fits(values):
            raise ValueError("it is not what was written: its seal does not fit")
        return {name: value for name, value in values.items() if name != _SEAL}


def is_none(value: object) -> bool:
    """Leaves out, by `exclude_if`, a field that is not set: plans without it are written, and hashed, as ever."""
    return value is None


def seal_fits(values: dict[str, Any]) -> bool:
    """Whether values read from JSON are those that a `Sealed` wrote; true also of those without a seal."""
    rest = {name: value for name, value in values.items() if name != _SEAL}
    return bool(values.get(_SEAL, digest(rest)) == digest(rest))
