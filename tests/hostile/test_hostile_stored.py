"""What one writer has stored costs a reader no more memory than its bounds, on every path that reads it back."""

import pytest
from hostile_watch import MIB, Watch
from servers import ServerProcess
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.limits import HOLES_MAX
from thin import Part, begin, finish

MORE_MAX = 100 * MIB
"""What all reads of a stored backup together may add to the server's memory. Before there was a bound it was over 400 MiB."""
HOLEY, FULL_OF_HOLES = 140, HOLES_MAX
MANY, NAMED = 4096, 300


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = ServerProcess(tmp_path_factory.mktemp("stored") / "data")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def holes():
    """Files of zeros, each with as many holes as an entry may have."""
    many = [pb.Hole(offset_bytes=n * 8192, length_bytes=4096) for n in range(FULL_OF_HOLES)]
    size = FULL_OF_HOLES * 8192
    yield [begin("holes")]
    for n in range(HOLEY):
        yield [
            Part(entry=pb.Entry(path=f"{n:04}", holes=many)),
            Part(data=sv.Data(zero_bytes=size)),
            Part(entry_end=sv.EntryEnd()),
        ]
    yield [finish(HOLEY, HOLEY * size)]


def names():
    """Directories with hundreds of attributes of a few bytes: together they take less than what stands in an entry."""
    many = [pb.Xattr(name=chr(0x21 + n // 64) + chr(0x30 + n % 64)) for n in range(NAMED)]
    yield [begin("names")]
    for start in range(0, MANY, 256):
        yield [
            Part(entry=pb.Entry(path=f"{n:06}", type=pb.ENTRY_TYPE_DIRECTORY, xattrs=many))
            for n in range(start, start + 256)
        ]
    yield [finish(MANY, 0)]


def listed(stub, name):
    paths, token = [], ""
    while True:
        page = stub.ListEntries(
            sv.ListEntriesRequest(dataset=name, recursive=True, page_size=10_000, page_token=token)
        )
        paths += [entry.path for entry in page.entries]
        token = page.next_page_token
        if not token:
            return paths


READS = {
    "restore": lambda stub, name: [
        part.entry.path
        for response in stub.Restore(sv.RestoreRequest(dataset=name, view=sv.ENTRY_VIEW_BASIC))
        for part in response.parts
        if part.HasField("entry")
    ],
    "restore with data": lambda stub, name: [
        part.entry.path
        for response in stub.Restore(sv.RestoreRequest(dataset=name))
        for part in response.parts
        if part.HasField("entry")
    ],
    "list": listed,
}


@pytest.mark.parametrize(
    ("make", "count"), [(holes, HOLEY), (names, MANY)], ids=["holes", "extended attributes"]
)
@pytest.mark.slow
def test_entries_with_all_that_an_entry_may_have_are_read_back_in_bounded_memory(server, make, count):
    stub = server.stub()
    backup = stub.Backup(sv.BackupRequest(parts=parts) for parts in make()).backup
    for what, read in READS.items():
        with Watch(server) as watch:
            found = read(stub, backup.dataset)
            assert len([path for path in found if path]) == count
        more = watch.peak - watch.before
        assert more < MORE_MAX, f"{what}: {more // MIB} MiB"
