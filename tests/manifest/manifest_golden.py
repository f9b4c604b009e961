"""The objects of the golden files; run as a program, writes them: `python tests/manifest/manifest_golden.py`."""

import json
import random
from pathlib import Path

from manifest_model import PAGE_KEY, Pages, build, digest_of, directory, file, in_order
from staddle_server.base.types import Attributes, ChunkRef, Entry, EntryType, Flag, Hole, Profile, Root, Xattr
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import implied_directory, removal
from staddle_server.manifest.pages import FORMAT, Child, encode_attributes, encode_index, encode_leaf
from staddle_server.manifest.tree import write_run

FOLDER = Path(__file__).parent.parent / "golden" / "manifest"

LONG_LIST = [ChunkRef(1 + n, digest_of(f"golden chunk {n}")) for n in range(1500)]
ATTRIBUTES = Attributes(
    (Xattr(b"security.capability", bytes(range(20))), Xattr(b"user.comment", b"golden")),
    (Hole(0, 4096), Hole(8192, 65_536)),
)
LEAF = [
    directory(b""),
    implied_directory(b"a"),
    file(b"a/b.txt", 1, mode=0o644, uid=1000, gid=100, mtime_ns=1_700_000_000_123_456_789, ctime_ns=-1,
         inode=2**63, owner="ana", group="users", link_group=b"group", flags=int(Flag.READ_AGAIN)),
    file(b"a/three", 2),
    file(b"a/\xff \n", 0, file_digest=digest_of("whole"), flags=int(Flag.DIGEST_VERIFIED)),
    Entry(b"c", EntryType.CHAR_DEVICE, device=(4, 65_536)),
    Entry(b"l", EntryType.SYMLINK, link_target=b"../there"),
    Entry(b"p", EntryType.FIFO, attributes=Attributes((Xattr(b"user.a", b"b"),))),
]  # fmt: skip
CHILDREN = [Child(b"a/b", digest_of("one"), 128, 2**40), Child(b"z", digest_of("two"), 1, 0)]
RUN = [removal(b"a"), directory(b"a"), file(b"a/new", 2), removal(b"b/gone"), file(b"c", 3)]


def manifest() -> tuple[Root, Pages]:
    """A manifest of some hundred entries, with a long list and large attributes."""
    pages = Pages()
    random_of_tree = random.Random(20)
    entries = [directory(b"")]
    for d in range(20):
        entries.append(directory(b"d%02d" % d))
        entries.extend(
            file(b"d%02d/f%03d" % (d, f), random_of_tree.randrange(9), mtime_ns=d * f) for f in range(50)
        )
    builder = ContentBuilder(pages, Profile.FIXED)
    for ref in LONG_LIST:
        builder.add(ref)
    entries.append(Entry(b"long", content=builder.finish()))
    large = Attributes((Xattr(b"user.large", bytes(5000)),))
    entries.append(store_attributes(file(b"with attributes", attributes=large), pages))
    return build(in_order(entries), pages, FORMAT), pages


def list_chunk() -> bytes:
    """The first list chunk of LONG_LIST."""
    pages = Pages()
    builder = ContentBuilder(pages, Profile.CONTENT_DEFINED)
    for ref in LONG_LIST:
        builder.add(ref)
    builder.finish()
    return pages.stored[pages.written_digests[0]]


def run_root() -> tuple[Root, Pages]:
    pages = Pages()
    return write_run(RUN, pages, PAGE_KEY), pages


def objects() -> dict[str, bytes]:
    """The golden files, by name."""
    root, pages = manifest()
    run, run_pages = run_root()
    described = {
        "page_key": PAGE_KEY.hex(),
        "level": root.level,
        "digest": root.digest.hex(),
        "entries": root.entries,
        "data_bytes": root.data_bytes,
        "pages": sorted(digest.hex() for digest in pages.stored),
    }
    return {
        "leaf.bin": encode_leaf(LEAF),
        "index.bin": encode_index(1, CHILDREN),
        "list.bin": list_chunk(),
        "attributes.bin": encode_attributes(ATTRIBUTES),
        "run.bin": run_pages.stored[run.digest],
        "manifest.json": (json.dumps(described, indent=1) + "\n").encode(),
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in objects().items():
        (FOLDER / name).write_bytes(data)
