"""The base of every model here: frozen, unknown keys refused; and the kinds of text in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from schemas.location import fault_of_place


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
