"""The golden files define the format: each is read, and reproduced byte for byte."""

import struct

import manifest_golden as golden
import pytest
from manifest_model import Pages
from staddle_server.base.types import Root
from staddle_server.manifest.pages import decode_attributes, decode_index, decode_leaf
from staddle_server.manifest.read import entries_of


def stored(name: str) -> bytes:
    return (golden.FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", sorted(golden.objects()))
def test_the_golden_files_are_reproduced(name: str) -> None:
    assert golden.objects()[name] == stored(name)


def test_every_golden_file_is_tested() -> None:
    assert sorted(path.name for path in golden.FOLDER.iterdir()) == sorted(golden.objects())


def test_the_golden_pages_are_read_correctly() -> None:
    assert list(decode_leaf(stored("leaf.bin"))) == golden.LEAF
    assert decode_index(stored("index.bin")) == (1, golden.CHILDREN)
    assert decode_attributes(stored("attributes.bin")) == golden.ATTRIBUTES
    assert list(decode_leaf(stored("run.bin"), run=True)) == golden.RUN


def test_the_golden_run_is_one_leaf() -> None:
    pages = Pages()
    digest = pages.write(stored("run.bin"))
    assert (
        list(
            entries_of(
                Root(
                    0,
                    digest,
                    len(golden.RUN),
                    sum(entry.content.size for entry in golden.RUN if entry.content),
                ),
                pages,
            )
        )
        == golden.RUN
    )


def test_the_golden_list_chunk_ends_where_the_format_says() -> None:
    data = stored("list.bin")
    assert data[:2] == b"\3\0"
    items = list(struct.Struct("<Q32s").iter_unpack(data[2:]))
    assert items == [tuple(ref) for ref in golden.LONG_LIST[: len(items)]]
    ends = [digest[0] & 0x7F == 0 for _, digest in items]
    assert ends == [False] * (len(items) - 1) + [True] or len(items) == 1024
