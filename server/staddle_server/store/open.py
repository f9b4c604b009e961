"""Open a store by its place: a path, or a URL whose scheme names the backend."""

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from staddle_server.base.places import UnknownSchemeError, scheme_of
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import Blobs


def _directory(url: str) -> Blobs:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not a local directory: use file:///absolute/path")
    return DirectoryBlobs(unquote(parts.path))


BACKENDS: Final[Mapping[str, Callable[[str], Blobs]]] = {"file": _directory}
"""What opens a URL, by scheme. A further backend is a module in `backends` and a line here."""


def open_blobs(place: str) -> Blobs:
    """Return the blobs of the store at `place`: the path of an existing directory, or file:// and that path.

    Raises UnknownSchemeError for a URL without a backend, ValueError for one that does not name a directory,
    and Unavailable if the place does not respond.
    """
    scheme = scheme_of(place)
    if not scheme:
        return DirectoryBlobs(place)
    if scheme not in BACKENDS:
        raise UnknownSchemeError("store", scheme, BACKENDS)
    return BACKENDS[scheme](place)
