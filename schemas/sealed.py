"""Records that say by themselves whether they are as they were written: a flipped bit is seen."""

from __future__ import annotations

from typing import Any

from pydantic import SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from schemas.digest import digest
from schemas.section import Section

_SEAL = "seal"


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


def seal_fits(values: dict[str, Any]) -> bool:
    """Whether values read from JSON are those that a `Sealed` wrote; true also of those without a seal."""
    rest = {name: value for name, value in values.items() if name != _SEAL}
    return bool(values.get(_SEAL, digest(rest)) == digest(rest))
