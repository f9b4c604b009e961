"""Open a store by its place: a path, or a URL whose scheme names the backend."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from staddle_server.base.places import UnknownSchemeError, scheme_of
from staddle_server.store.backends import object_urls
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import Blobs

Environ = Mapping[str, str]


def _directory(url: str, _environ: Environ, _spool: str) -> Blobs:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not a local directory: use file:///absolute/path")
    return DirectoryBlobs(unquote(parts.path))


BACKENDS: Final[Mapping[str, Callable[[str, Environ, str], Blobs]]] = {
    "file": _directory,
    **dict.fromkeys(object_urls.SCHEMES, object_urls.open_object_url),
}
"""What opens a URL, by scheme. A further backend is a module in `backends` and a line here."""


def open_blobs(place: str, environ: Environ = MappingProxyType({}), spool: str = "/tmp") -> Blobs:  # noqa: S108
    """Return the blobs of the store at `place`: the path of an existing directory, or a URL.

    `environ` may name a file of credentials; objects on their way to another machine are gathered in `spool`.
    Raises UnknownSchemeError for a URL without a backend, ValueError for one that does not name a place, and
    Unavailable or Fault if the place cannot be opened.
    """
    scheme = scheme_of(place)
    if not scheme:
        return DirectoryBlobs(place)
    if scheme not in BACKENDS:
        raise UnknownSchemeError("store", scheme, BACKENDS)
    return BACKENDS[scheme](place, environ, spool)


def check_engine(url: str, environ: Environ, spool: str) -> None:
    """Try whether the object store at `url` does what backups need.

    Raises UnsafeStore, and as `open_blobs` does.
    """
    blobs = object_urls.open_object_url(url, environ, spool)
    from staddle_server.store.backends import object_probe

    object_probe.check(blobs)
