"""The contract of Blobs, over every backend and wrapper, and over what opens them."""

from pathlib import Path

import pytest
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.observer import NOTHING
from staddle_server.base.places import UnknownSchemeError
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import (
    FORMAT_NAME,
    BlobMissing,
    Blobs,
    BlobWriter,
    check_format,
    create_format,
)
from staddle_server.store.locks import described, lock_of
from staddle_server.store.observed import ObservedBlobs
from staddle_server.store.open import open_blobs
from staddle_server.store.testing import BlobsContract
from staddle_server.store.wrapped import WrappedBlobs, WrappedWriter


class TestDirectoryBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return DirectoryBlobs(str(tmp_path))


class TestMemoryBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return MemoryBlobs()


class WithWriters(WrappedBlobs):
    """Wraps the writers as well."""

    def create(self) -> BlobWriter:
        return WrappedWriter(super().create())


class TestWrappedBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return WithWriters(WrappedBlobs(MemoryBlobs()))


class TestObservedBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return ObservedBlobs(MemoryBlobs(), NOTHING)


class Lockable(MemoryBlobs):
    lock = None


def test_a_wrapped_store_keeps_its_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = object()
    wrapped = ObservedBlobs(WrappedBlobs(Lockable()), NOTHING)
    assert (lock_of(wrapped), described(wrapped)[:11]) == (None, "object lock")
    monkeypatch.setattr(Lockable, "lock", locks)
    assert lock_of(wrapped) is locks
    assert described(ObservedBlobs(MemoryBlobs(), NOTHING)) == ""


def test_a_store_says_which_format_it_has(blobs: Blobs) -> None:
    with pytest.raises(BlobMissing):
        check_format(blobs)
    create_format(blobs)
    check_format(blobs)
    assert blobs.read(FORMAT_NAME, 0, 16) == b"staddle store 1\n"
    blobs.delete(FORMAT_NAME)
    blobs.put(FORMAT_NAME, b"staddle store 2\n")
    with pytest.raises(Damaged, match="another version"):
        check_format(blobs)


# --- opening


@pytest.mark.parametrize("place", ["{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_a_path_or_a_file_url_opens_the_directory(tmp_path: Path, place: str) -> None:
    root = tmp_path / "a place"
    root.mkdir()
    DirectoryBlobs(str(root)).put("a", b"1")
    quoted = str(root).replace(" ", "%20") if "://" in place else str(root)
    assert list(open_blobs(place.format(quoted)).list("")) == [("a", 1)]


@pytest.mark.parametrize("place", ["sftp://key:secret@host/prefix", "memory://"])
def test_an_unknown_scheme_is_named_with_the_known_ones(place: str) -> None:
    with pytest.raises(
        UnknownSchemeError, match=r"^cannot open a store at \w+://.*az:// or file:// or gs:// or s3://$"
    ) as caught:
        open_blobs(place)
    assert caught.value.scheme == place.partition("://")[0]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["file://", "file://elsewhere/srv", "file:///srv?a=b", "file:///srv#part"])
def test_a_file_url_that_names_no_directory_of_this_machine_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///absolute/path"):
        open_blobs(url)


# --- wrappers


class Spent(MemoryBlobs):
    """Memory after a failure from which it does not recover."""

    failed = "sync failed"

    def check_writable(self) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "sync failed")

    def sweep(self) -> int:
        return 3


def test_a_wrapper_reports_the_properties_of_its_blobs() -> None:
    wrapped = WrappedBlobs(Spent())
    assert wrapped.failed == "sync failed"
    assert wrapped.sweep() == 3
    with pytest.raises(Unavailable, match="sync failed"):
        wrapped.check_writable()
