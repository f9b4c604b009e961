"""A second place for a data directory's store: a directory or an object store, opened for replication."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.store_place import DataDirectoryError, DirectoryPlace, ObjectStorePlace, StorePlace
from staddle_server.base.places import scheme_of
from staddle_server.catalog.validation import stored_text
from staddle_server.store.blobs import BlobExists, create_format
from staddle_server.upkeep.replication.site import Site, SiteRefused

PREFIX: Final = "REPLICATE_"
"""Before the name of a variable such as AWS_ACCESS_KEY_ID: its value for the second place."""


class SecondSite:
    """The second place of a data directory's store."""

    def __init__(self, directory: DataDirectory, wanted: str, environ: Mapping[str, str]) -> None:
        """`wanted` is what `parse_site` returned. Objects on their way are gathered in the data directory."""
        self._directory = directory
        self._keeps_parity = not scheme_of(wanted)
        self._path = None if scheme_of(wanted) else Path(wanted)
        self._place: StorePlace = (
            DirectoryPlace(self._path)
            if self._path is not None
            else ObjectStorePlace(wanted, directory.path, _environ_of_site(environ))
        )

    @property
    def name(self) -> str:
        """What messages and the catalog call it: without options, and as text also where a path is none."""
        return stored_text(str(self._place))

    @contextlib.contextmanager
    def opened(self, *, known: bool) -> Iterator[Site]:
        """Open it, made if it is missing and not `known`, and locked where it has locks.

        Raises SiteRefused for the store itself, for foreign content, for a place that is in use, and for a known
        one that is missing: a new, empty one in its place would lack what counts as copied.
        """
        with contextlib.ExitStack() as held:
            with self._refusing():
                self._require_other()
                if not self._place.is_marked():
                    if known:
                        raise self._lost()
                    self._place.make()
                    with contextlib.suppress(BlobExists):
                        create_format(self._place.open())
                held.enter_context(self._place.locked())
            blobs = self._place.open()
            blobs.sweep()
            yield Site(self.name, blobs, keeps_parity=self._keeps_parity)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Translate what a directory reports."""
        try:
            yield
        except DataDirectoryError as error:
            raise SiteRefused(str(error)) from error
        except OSError as error:
            raise SiteRefused(f"cannot write in {self.name}: {error.strerror}") from error

    def _lost(self) -> SiteRefused:
        return SiteRefused(
            f"{self.name} is missing or empty, and has copies of this store: is its file system mounted? Nothing was changed. If they are "
            "lost, run `staddle-server replicate --forget` with this place, and everything is copied again"
        )

    def _require_other(self) -> None:
        """Refuse the store itself, and what lies in it, where it would be foreign."""
        own, place = str(self._directory.place), str(self._place)
        if self._path is not None:
            if self._path.exists() and not self._path.is_dir():
                raise SiteRefused(
                    f"{self.name} is a file, not a directory: nothing was changed; name another place"
                )
            # Links and mounts may lead to the store, or into it.
            own, place = os.path.realpath(self._directory.store), os.path.realpath(self._path)
            with contextlib.suppress(OSError):
                place = own if os.path.samefile(place, own) else place
        if place == own:
            raise SiteRefused(f"{self.name} is the store itself: name another place")
        if place.startswith(f"{own}/"):
            raise SiteRefused(f"{self.name} lies in the store {own}: name another place")


def _environ_of_site(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the second place: variables with PREFIX replace all of the same family."""
    own = {name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX)}
    if not own:
        return dict(environ)
    return {name: value for name, value in environ.items() if not name.startswith("AWS_")} | own
