"""A client of the generated code alone, as any language has it, for what the command does not do.

    python -m benchmarks.programs.generated_client fill DATASET COUNT     a backup of very many empty files, in one Backup stream
    python -m benchmarks.programs.generated_client durable UPLOAD         how many bytes of an open upload are durable

The server is the one in STADDLE_CONFIG.
"""

import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1.service_pb2_grpc import StaddleServiceStub

FILES_PER_DIRECTORY: Final = 1_000
PARTS_PER_MESSAGE: Final = 5_000
DEADLINE_S: Final = 3_600.0

Metadata = tuple[tuple[str, str | bytes], ...]


def listed(count: int) -> Iterator[str]:
    """How `staddle ls -R` shows a backup that `fill` made: directories, which the client did not send, and so many files."""
    for number in range(count):
        directory, place = divmod(number, FILES_PER_DIRECTORY)
        if not place:
            yield f"d{directory:06d}/"
        yield path_of(number)


def path_of(number: int) -> str:
    """The path of one of the files, counted from 0."""
    directory, place = divmod(number, FILES_PER_DIRECTORY)
    return f"d{directory:06d}/file-{place:04d}.txt"


def fill(stub: StaddleServiceStub, metadata: Metadata, dataset: str, count: int) -> int:
    """Makes the backup; answers how many entries it has."""
    response = stub.Backup(_messages(dataset, count), metadata=metadata, timeout=DEADLINE_S)
    return response.backup.entry_count


def _messages(dataset: str, count: int) -> Iterator[sv.BackupRequest]:
    begin = sv.BeginUploadRequest(dataset=dataset, kind=pb.BACKUP_KIND_FULL)
    yield sv.BackupRequest(parts=[sv.BackupPart(begin=begin)])
    for start in range(0, count, PARTS_PER_MESSAGE):
        numbers = range(start, min(count, start + PARTS_PER_MESSAGE))
        entries = (
            pb.Entry(path=path_of(number), data=b"", mode=0o644, mtime_ns=number) for number in numbers
        )
        yield sv.BackupRequest(parts=[sv.BackupPart(entry=entry) for entry in entries])
    finish = sv.Finish(entry_count=count, data_bytes=0)
    yield sv.BackupRequest(parts=[sv.BackupPart(finish=finish)])


def durable(stub: StaddleServiceStub, metadata: Metadata, upload: str) -> int:
    """Bytes of an upload that are durable, those of the file that was being sent included."""
    request = sv.GetUploadRequest(upload_id=upload)
    point = stub.GetUpload(request, metadata=metadata, timeout=DEADLINE_S).upload.durable
    return point.data_bytes + point.open_offset_bytes


def main() -> None:
    config = tomllib.loads(Path(os.environ["STADDLE_CONFIG"]).read_text())
    metadata: Metadata = (("authorization", f"Bearer {config['token']}"),)
    with grpc.insecure_channel(config["server"]) as channel:
        stub = StaddleServiceStub(channel)
        match sys.argv[1:]:
            case ["fill", dataset, count]:
                print(fill(stub, metadata, dataset, int(count)))
            case ["durable", upload]:
                print(durable(stub, metadata, upload))
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    main()
