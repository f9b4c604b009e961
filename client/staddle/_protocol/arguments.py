"""What callers pass, checked before anything is sent."""

import enum
from typing import TypeVar

from staddle._errors import BadRequestError
from staddle._protocol.convert import path_fault
from staddle._types.entries import PathLike, path_to_bytes

E = TypeVar("E", bound=enum.StrEnum)


def choice(field: str, value: str, choices: type[E]) -> E:
    """One of a few words. Raises BadRequestError, which names them."""
    try:
        return choices(value)
    except ValueError:
        names = ", ".join(choices)
        raise BadRequestError(f"{field} is one of {names}, not {value!r}.", facts={"field": field}) from None


def checked_path(path: PathLike) -> bytes:
    """A path inside a backup, as bytes. Raises BadRequestError for what is none."""
    raw = path_to_bytes(path)
    wrong = path_fault(raw)
    if wrong:
        raise BadRequestError(f"{raw!r} is no path inside a backup: {wrong}.", facts={"field": "path"})
    return raw
