"""Every limit and rule of an entry, with an entry that breaks it and one that does not."""

import pytest
from manifest_model import digest_of, directory, file, small_content
from staddle.chunking import EMPTY_CONTENT_ID
from staddle_server.base import errors, limits
from staddle_server.base.types import (
    Attributes,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    Flag,
    Hole,
    ListRoot,
    Xattr,
)
from staddle_server.manifest.entries import check_entry, check_path, check_whole, removal, same, same_content


@pytest.mark.parametrize(
    "path",
    [
        b"/a", b"a/", b"a//b", b"/", b".", b"..", b"./a", b"a/.", b"a/./b", b"../a", b"a/..", b"a/../b",
        b"a\0b", b"x" * (limits.COMPONENT_BYTES_MAX + 1), b"/".join([b"xyz"] * (limits.PATH_COMPONENTS_MAX + 1)),
    ],
)  # fmt: skip
def test_an_invalid_path_is_refused_with_field_and_path(path: bytes) -> None:
    with pytest.raises(errors.BadRequest) as raised:
        check_path(path)
    assert raised.value.reason == "BAD_FIELD"
    assert raised.value.facts["field"] == "path"
    assert len(raised.value.facts["path"]) < 600


@pytest.mark.parametrize(
    "path",
    [
        b"", b"a", b"a/b", b".a", b"a/.b", b"a.", b"...", b"a/...", b"..a", b"a\nb", b"\xff\xfe", b"a\\..\\b",
        b"x" * limits.COMPONENT_BYTES_MAX, b"/".join([b"xyz"] * limits.PATH_COMPONENTS_MAX),
    ],
)  # fmt: skip
def test_unusual_paths_are_valid(path: bytes) -> None:
    check_path(path)


REF = ChunkRef(5, digest_of("five"))
XATTR = Xattr(b"user.a", b"")


def with_holes(*holes: Hole) -> Entry:
    return Entry(b"f", content=Content(5, REF.digest, chunks=(REF,)), attributes=Attributes((), holes))


def with_xattrs(*xattrs: Xattr) -> Entry:
    return Entry(b"f", attributes=Attributes(xattrs))


BAD = [
    ("mode", directory(b"d", 0o10000)),
    ("mode", directory(b"d", -1)),
    ("uid", Entry(b"f", uid=2**32)),
    ("gid", Entry(b"f", gid=-1)),
    ("mtime_ns", Entry(b"f", mtime_ns=2**63)),
    ("ctime_ns", Entry(b"f", ctime_ns=-(2**63) - 1)),
    ("inode", Entry(b"f", inode=2**64)),
    ("flags", Entry(b"f", flags=-1)),
    ("incomplete", file(b"f", flags=int(Flag.INCOMPLETE))),
    ("type", Entry(b"")),
    ("type", Entry(b"f", EntryType.REMOVED, mode=0)),
    ("content", Entry(b"d", EntryType.DIRECTORY, content=small_content(1))),
    ("content.size_bytes", Entry(b"f", content=Content(6, REF.digest, chunks=(REF,)))),
    ("content.size_bytes", Entry(b"f", content=Content(-1, REF.digest))),
    ("content.size_bytes", Entry(b"f", content=Content(2**56 + 1, REF.digest, root=ListRoot(0, REF.digest)))),
    ("content.size_bytes", Entry(b"f", content=Content(16, REF.digest, root=ListRoot(0, REF.digest)))),
    ("content.content_id", Entry(b"f", content=Content(5, digest_of("other"), chunks=(REF,)))),
    ("content.content_id", Entry(b"f", content=Content(0, digest_of("other")))),
    ("content.content_id", Entry(b"f", content=Content(0, b""))),
    ("content.chunks", Entry(b"f", content=Content(85, REF.digest, chunks=(REF,) * 17))),
    ("content.chunks", Entry(b"f", content=Content(5, REF.digest, chunks=(ChunkRef(5, b""),)))),
    ("content.chunks", Entry(b"f", content=Content(0, REF.digest, chunks=(ChunkRef(0, REF.digest),)))),
    ("content.chunks", Entry(b"f", content=Content(2**20 + 1, REF.digest, chunks=(ChunkRef(2**20 + 1, REF.digest),)))),
    ("content.chunks", Entry(b"f", content=Content(5, REF.digest, chunks=(REF,), root=ListRoot(0, REF.digest)))),
    ("content.root", Entry(b"f", content=Content(100, REF.digest, root=ListRoot(16, REF.digest)))),
    ("content.root", Entry(b"f", content=Content(100, REF.digest, root=ListRoot(0, b"short")))),
    ("link_target", Entry(b"l", EntryType.SYMLINK)),
    ("link_target", Entry(b"l", EntryType.SYMLINK, link_target=b"")),
    ("link_target", Entry(b"l", EntryType.SYMLINK, link_target=b"a\0b")),
    ("link_target", Entry(b"l", EntryType.SYMLINK, link_target=b"a" * 4097)),
    ("link_target", Entry(b"f", link_target=b"a")),
    ("device", Entry(b"c", EntryType.CHAR_DEVICE)),
    ("device", Entry(b"b", EntryType.BLOCK_DEVICE, device=(1, 2**32))),
    ("device", Entry(b"p", EntryType.FIFO, device=(1, 2))),
    ("owner", Entry(b"f", owner="x" * 257)),
    ("owner", Entry(b"f", owner="\udc80")),
    ("group", Entry(b"f", group="ü" * 129)),
    ("link_group", Entry(b"f", link_group=bytes(65))),
    ("file_digest", Entry(b"f", file_digest=b"short")),
    ("file_digest", Entry(b"d", EntryType.DIRECTORY, file_digest=bytes(32))),
    ("xattrs", with_xattrs(Xattr(b"", b""))),
    ("xattrs", with_xattrs(Xattr(b"x" * 256, b""))),
    ("xattrs", with_xattrs(Xattr(b"a\0b", b""))),
    ("xattrs", with_xattrs(Xattr(b"a", bytes(65_537)))),
    ("xattrs", with_xattrs(XATTR, XATTR)),
    ("xattrs", with_xattrs(*(Xattr(b"%d" % n, b"") for n in range(1025)))),
    ("xattrs", with_xattrs(*(Xattr(b"%d" % n, bytes(65_536)) for n in range(16)))),
    ("holes", with_holes(Hole(0, 6))),
    ("holes", with_holes(Hole(0, 0))),
    ("holes", with_holes(Hole(-1, 2))),
    ("holes", with_holes(Hole(0, 1), Hole(1, 1))),
    ("holes", with_holes(Hole(3, 1), Hole(0, 1))),
    ("holes", Entry(b"d", EntryType.DIRECTORY, attributes=Attributes((), (Hole(0, 1),)))),
    ("holes", Entry(b"f", attributes=Attributes((), tuple(Hole(2 * n, 1) for n in range(32_769))))),
    ("attributes", Entry(b"f", attributes=Attributes((XATTR,)), attributes_ref=REF)),
    ("attributes", Entry(b"f", attributes_ref=ChunkRef(0, REF.digest))),
]  # fmt: skip


@pytest.mark.parametrize(("field", "entry"), BAD)
def test_an_entry_that_breaks_a_rule_is_refused_with_field_and_path(field: str, entry: Entry) -> None:
    with pytest.raises(errors.BadRequest) as raised:
        check_entry(entry)
    assert (raised.value.reason, raised.value.facts["field"]) == ("BAD_FIELD", field)
    assert raised.value.facts["path"] == entry.path.decode()


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"f"),
        directory(b"", 0o7777),
        removal(b""),
        removal(b"a/b"),
        Entry(b"f", content=Content(0, EMPTY_CONTENT_ID)),
        Entry(b"f", content=Content(17, digest_of("any"), root=ListRoot(15, REF.digest))),
        Entry(b"f", mtime_ns=-(2**63), ctime_ns=2**63 - 1, inode=2**64 - 1, uid=2**32 - 1, gid=0),
        Entry(b"c", EntryType.CHAR_DEVICE, device=(0, 2**32 - 1)),
        Entry(b"l", EntryType.SYMLINK, link_target=b"../../x"),
        Entry(b"p", EntryType.FIFO, attributes=Attributes((XATTR,))),
        Entry(b"s", EntryType.SOCKET, owner="ü" * 128, link_group=bytes(64)),
        with_holes(Hole(0, 2), Hole(3, 2)),
    ],
)
def test_values_in_range_are_accepted(entry: Entry) -> None:
    check_entry(entry)


def test_a_file_of_a_manifest_has_content() -> None:
    check_whole(file(b"f"))
    with pytest.raises(errors.BadRequest):
        check_whole(Entry(b"f"))


def test_content_is_type_content_id_target_and_device() -> None:
    assert same_content(file(b"f", 1, mode=0o600), file(b"f", 1, mode=0o644))
    assert not same_content(file(b"f", 1), file(b"f", 2))
    assert not same_content(file(b"f"), directory(b"f"))
    link = Entry(b"l", EntryType.SYMLINK, link_target=b"a")
    assert not same_content(link, Entry(b"l", EntryType.SYMLINK, link_target=b"b"))
    device = Entry(b"c", EntryType.CHAR_DEVICE, device=(1, 2))
    assert not same_content(device, Entry(b"c", EntryType.CHAR_DEVICE, device=(1, 3)))


def test_equality_ignores_only_the_mark_for_rereading() -> None:
    assert same(file(b"f"), file(b"f", flags=int(Flag.READ_AGAIN)))
    assert not same(file(b"f"), file(b"f", flags=int(Flag.DIGEST_VERIFIED)))
    assert not same(file(b"f", mtime_ns=1), file(b"f", mtime_ns=2, flags=int(Flag.READ_AGAIN)))
