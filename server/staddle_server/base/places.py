"""The place of a store or a catalog: a path, or a URL whose scheme says what kind of place it is."""

import re
from collections.abc import Iterable
from typing import Final

_SCHEME: Final = re.compile("([a-z][a-z0-9+.-]*)://", re.ASCII | re.IGNORECASE)


class UnknownSchemeError(ValueError):
    """A URL whose scheme this version cannot open.

    The message leaves out the rest of the URL, which may contain a password.

    Attributes:
        what: What should be opened: "store" or "catalog".
        scheme: The scheme in lower case, without "://".

    """

    def __init__(self, what: str, scheme: str, known: Iterable[str]) -> None:
        schemes = " or ".join(f"{each}://" for each in sorted(known))
        super().__init__(
            f"cannot open a {what} at {scheme}://: this version does not support it; use a path or {schemes}"
        )
        self.what = what
        self.scheme = scheme


def scheme_of(place: str) -> str:
    """Return the scheme of a URL, in lower case; "" for a path.

    A path that looks like a URL needs "./" before it.
    """
    found = _SCHEME.match(place)
    return found.group(1).lower() if found else ""
