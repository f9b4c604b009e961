"""The contract of Blobs as tests: the author of a backend or wrapper subclasses BlobsContract.

    pytest.register_assert_rewrite("staddle_server.store.testing")  # in conftest.py, for readable failures

    class TestMyBlobs(BlobsContract):
        @pytest.fixture
        def blobs(self, tmp_path: Path) -> Blobs:
            return MyBlobs(...)  # empty

Needs pytest, which the server itself does not. These tests cannot see durability: each backend needs tests of
its own for that, such as tests/store/test_store_directory.py.
"""

import threading
from typing import Final

import pytest

from staddle_server.base.errors import Damaged
from staddle_server.base.threads import Threads
from staddle_server.store.blobs import BlobExists, BlobMissing, Blobs, BlobShort

NAME: Final = "packs/aa/00/f00.d"


class BlobsContract:
    """The promises of all blobs.

    Each test gets empty blobs from the fixture `blobs`, which a subclass overrides.
    """

    @pytest.fixture
    def blobs(self) -> Blobs:
        """Empty blobs."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `blobs`")

    def test_new_blobs_are_empty_and_take_writes(self, blobs: Blobs) -> None:
        assert list(blobs.list("")) == []
        assert blobs.failed is None
        blobs.check_writable()

    def test_a_sweep_takes_neither_objects_nor_what_is_being_written(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"whole")
        writer = blobs.create()
        writer.write(b"being written")
        assert blobs.sweep() == 0
        writer.commit("a/other")
        assert list(blobs.list("")) == [("a/other", 13), (NAME, 5)]

    def test_an_object_reads_back_whole_and_in_ranges(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"0123456789")
        assert blobs.read(NAME, 0, 10) == b"0123456789"
        assert blobs.read(NAME, 3, 4) == b"3456"
        assert blobs.read(NAME, 10, 0) == b""
        assert blobs.size(NAME) == 10

    def test_an_object_written_in_parts_is_their_sum_whatever_kind_of_buffer_they_are(
        self, blobs: Blobs
    ) -> None:
        writer = blobs.create()
        reused = bytearray(b"cd")
        writer.write(b"ab")
        writer.write(reused)
        reused[:] = b"XX"
        writer.write(memoryview(b"_ef_")[1:3])
        writer.write(b"")
        writer.commit(NAME)
        assert blobs.read(NAME, 0, 6) == b"abcdef"
        assert blobs.size(NAME) == 6

    def test_an_empty_object_is_an_object(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"")
        assert blobs.size(NAME) == 0
        assert blobs.read(NAME, 0, 0) == b""
        assert list(blobs.list("")) == [(NAME, 0)]

    @pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (9, 2), (11, 0), (500, 1), (0, 2**60)])
    def test_a_range_past_the_end_is_short_and_never_less_data(
        self, blobs: Blobs, offset: int, length: int
    ) -> None:
        blobs.put(NAME, b"0123456789")
        with pytest.raises(BlobShort) as caught:
            blobs.read(NAME, offset, length)
        assert (caught.value.name, caught.value.offset, caught.value.length) == (NAME, offset, length)
        assert caught.value.size == 10
        assert NAME in caught.value.message

    def test_what_is_not_there_is_missing_and_named(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"x")
        for name in ("packs/aa/00/other", "packs/bb/00/f00.d", "nothing", NAME + "/below", "packs/aa"):
            for ask in (lambda n: blobs.read(n, 0, 1), blobs.size, blobs.delete):
                with pytest.raises(BlobMissing, match=name) as caught:
                    ask(name)
                assert isinstance(caught.value, Damaged)
                assert caught.value.name == name

    def test_a_deleted_object_is_missing_and_its_neighbours_stay(self, blobs: Blobs) -> None:
        blobs.put("a/1", b"one")
        blobs.put("a/2", b"two")
        blobs.delete("a/1")
        with pytest.raises(BlobMissing):
            blobs.read("a/1", 0, 1)
        assert list(blobs.list("a")) == [("a/2", 3)]

    def test_an_object_is_never_overwritten(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"first")
        with pytest.raises(BlobExists) as caught:
            blobs.put(NAME, b"second")
        assert caught.value.name == NAME
        assert blobs.read(NAME, 0, 5) == b"first"
        assert list(blobs.list("")) == [(NAME, 5)]

    @pytest.mark.parametrize("before", [None, b"", b"an older one, which is longer"])
    def test_an_object_takes_a_name_in_place_of_the_one_that_has_it_or_of_none(
        self, blobs: Blobs, before: bytes | None
    ) -> None:
        if before is not None:
            blobs.put(NAME, before)
        writer = blobs.create()
        writer.write(b"the new ")
        writer.write(b"one")
        assert list(blobs.list("")) == ([] if before is None else [(NAME, len(before))])
        writer.replace(NAME)
        assert blobs.read(NAME, 0, 11) == b"the new one"
        assert list(blobs.list("")) == [(NAME, 11)]
        with pytest.raises(ValueError, match="finished"):
            writer.replace(NAME)
        with pytest.raises(BlobExists):
            blobs.put(NAME, b"third")

    def test_an_object_takes_no_name_that_could_lead_elsewhere(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"old")
        for name in ("", "../up", "tmp/x", "a//b"):
            writer = blobs.create()
            with pytest.raises(ValueError, match="invalid name"):
                writer.replace(name)
        assert list(blobs.list("")) == [(NAME, 3)]

    def test_of_many_that_take_the_place_of_one_object_one_is_there_whole(self, blobs: Blobs) -> None:
        blobs.put(NAME, b"old")
        start = threading.Barrier(8)

        def replace(content: bytes) -> None:
            writer = blobs.create()
            writer.write(content)
            start.wait()
            writer.replace(NAME)

        contents = [bytes([65 + i]) * 5000 for i in range(8)]
        with Threads(len(contents), "contract") as threads:
            list(threads.map(replace, contents))
        assert blobs.read(NAME, 0, blobs.size(NAME)) in contents

    def test_what_is_not_committed_has_no_name(self, blobs: Blobs) -> None:
        writer = blobs.create()
        writer.write(b"half")
        assert list(blobs.list("")) == []
        writer.abort()
        writer.abort()
        assert list(blobs.list("")) == []

    def test_a_finished_writer_takes_nothing_more(self, blobs: Blobs) -> None:
        committed, aborted = blobs.create(), blobs.create()
        committed.commit(NAME)
        aborted.abort()
        for writer in (committed, aborted):
            with pytest.raises(ValueError, match="finished"):
                writer.write(b"x")
            with pytest.raises(ValueError, match="finished"):
                writer.commit("a/other")
        committed.abort()
        assert blobs.size(NAME) == 0

    def test_a_list_is_sorted_as_strings_and_holds_what_is_below_the_prefix_alone(self, blobs: Blobs) -> None:
        names = ["a.b", "a/b/2", "a/b/1", "a/b-1", "a/b.c/9", "ab/1", "b", "a-/0", "format"]
        for name in names:
            blobs.put(name, name.encode())
        assert list(blobs.list("")) == [(name, len(name)) for name in sorted(names)]
        assert [name for name, _ in blobs.list("a")] == ["a/b-1", "a/b.c/9", "a/b/1", "a/b/2"]
        assert [name for name, _ in blobs.list("a/b")] == ["a/b/1", "a/b/2"]
        assert list(blobs.list("zzz")) == []
        assert list(blobs.list("b")) == []

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "/",
            "/etc",
            "a//b",
            "a/",
            "..",
            "a/../b",
            ".",
            "a/./b",
            "A",
            "a_b",
            "a b",
            "a\\b",
            "a\0b",
            "ä",
            "١",
            "a\n",
            "tmp",
            "tmp/a",
            "x" * 200,
            "a/" * 300 + "a",
        ],
    )
    def test_a_name_that_could_lead_elsewhere_is_refused(self, blobs: Blobs, name: str) -> None:
        with pytest.raises(ValueError, match="invalid name"):
            blobs.put(name, b"")
        with pytest.raises(ValueError, match="invalid name"):
            blobs.read(name, 0, 0)
        with pytest.raises(ValueError, match="invalid name"):
            blobs.size(name)
        with pytest.raises(ValueError, match="invalid name"):
            blobs.delete(name)
        if name:
            with pytest.raises(ValueError, match="invalid name"):
                blobs.list(name)

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
    def test_a_negative_range_is_refused(self, blobs: Blobs, offset: int, length: int) -> None:
        blobs.put(NAME, b"0123456789")
        with pytest.raises(ValueError, match="invalid range"):
            blobs.read(NAME, offset, length)

    def test_of_many_writers_of_one_name_one_wins_whole(self, blobs: Blobs) -> None:
        start = threading.Barrier(8)
        outcomes: list[tuple[bytes, bool]] = []

        def write(content: bytes) -> None:
            start.wait()
            try:
                blobs.put(NAME, content)
            except BlobExists:
                outcomes.append((content, False))
            else:
                outcomes.append((content, True))

        with Threads(8, "contract") as threads:
            list(threads.map(write, [bytes([65 + i]) * 5000 for i in range(8)]))
        winners = [content for content, won in outcomes if won]
        assert len(outcomes) == 8
        assert [blobs.read(NAME, 0, 5000)] == winners
