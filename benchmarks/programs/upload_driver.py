"""Many uploads at once, from a few processes: each upload is one thread of a driver, with its own connection, dataset and file.

Two ways. `source`: the Python library, `Client.backup`, which cuts and compresses here and has ten threads more for each upload.
`thin`: the generated stub alone, one `Backup` stream of messages of 1 MiB, as a client in any language would. A client whose
call the server refuses as overloaded waits as long as the answer says, and retries: the library does that itself; for the stub, this does.

And a bystander, a process that makes one small call every 100 ms, whether the last one has been answered or not.
"""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle import Client, Progress
from staddle._transport.channel import tune_malloc
from staddle._transport.settings import load_settings
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1.service_pb2_grpc import StaddleServiceStub

WAYS: Final = ("source", "thin")
NAME: Final = "data.bin"
MESSAGE_BYTES: Final = 1024 * 1024
RETRY_S: Final = 600.0
"""So long an upload is tried again that the server has no room for."""
CALL_S: Final = 60.0
EVERY_S: Final = 0.1
OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)
"""A connection for each client, as if each were a process."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Share:
    """What one driver does."""

    config: Path
    """The client.toml of the server."""
    way: str
    sources: Path
    """Has a directory for each upload."""
    numbers: range


@dataclass(slots=True)
class Outcome:
    """How one upload went. Times are CLOCK_MONOTONIC, which all processes share."""

    number: int
    begun_s: float = 0.0
    ended_s: float = 0.0
    error: str = ""
    """Empty: it was committed."""
    progress: list[tuple[float, int]] = field(default_factory=list)
    """When how many bytes had been handed over."""


@dataclass(frozen=True, slots=True)
class Driven:
    """The report of a driver."""

    outcomes: list[Outcome]
    cpu_s: float


def dataset_of(number: int) -> str:
    """The dataset of an upload."""
    return f"client-{number:03}"


def source_of(sources: Path, number: int) -> Path:
    """The directory of an upload: one file lies in it."""
    return sources / f"{number:03}"


# --- drivers


def drive(share: Share, parent: Connection) -> None:
    """The work of a driver process: reports that it is ready, waits for a line, does all its uploads at once, reports the results."""
    tune_malloc()
    outcomes = [Outcome(number) for number in share.numbers]
    work = {"source": _source, "thin": _thin}[share.way]
    threads = [threading.Thread(target=_one, args=(work, share, outcome)) for outcome in outcomes]
    parent.send("ready")
    parent.recv()
    before_s = _cpu_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parent.send(Driven(outcomes, _cpu_s() - before_s))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _one(work: Callable[[Share, Outcome], None], share: Share, outcome: Outcome) -> None:
    outcome.begun_s = time.monotonic()
    try:
        work(share, outcome)
    except Exception as error:  # noqa: BLE001 - any error is reported, and fails the run
        outcome.error = f"{type(error).__name__}: {error}"[:500]
    outcome.ended_s = time.monotonic()


def _source(share: Share, outcome: Outcome) -> None:
    def note(progress: Progress) -> None:
        outcome.progress.append((time.monotonic(), progress.new_bytes))

    with Client.from_config(share.config) as client:
        client.backup(
            source_of(share.sources, outcome.number),
            dataset=dataset_of(outcome.number),
            kind="full",
            retry_s=RETRY_S,
            progress=note,
        )


def _thin(share: Share, outcome: Outcome) -> None:
    settings = load_settings(share.config)
    metadata: Metadata = (("authorization", f"Bearer {settings.token}"),)
    with grpc.insecure_channel(settings.server, options=OPTIONS) as channel:
        stub = StaddleServiceStub(channel)
        until_s = outcome.begun_s + RETRY_S
        while True:
            try:
                stub.Backup(_messages(share, outcome), metadata=metadata, timeout=RETRY_S)
                return
            except grpc.RpcError as error:
                wait_s = _asked_to_wait_s(error)
                if wait_s is None or time.monotonic() + wait_s > until_s:
                    raise
                time.sleep(wait_s)


def _messages(share: Share, outcome: Outcome) -> Iterator[sv.BackupRequest]:
    """A whole backup; what has been taken of it is noted as progress, from the beginning."""
    outcome.progress.clear()
    begin = sv.BeginUploadRequest(dataset=dataset_of(outcome.number), kind=pb.BACKUP_KIND_FULL)
    entry = pb.Entry(path=NAME)
    yield sv.BackupRequest(parts=[sv.BackupPart(begin=begin), sv.BackupPart(entry=entry)])
    size = 0
    with (source_of(share.sources, outcome.number) / NAME).open("rb", buffering=0) as file:
        while piece := file.read(MESSAGE_BYTES):
            yield sv.BackupRequest(parts=[sv.BackupPart(data=sv.Data(data=piece))])
            size += len(piece)
            outcome.progress.append((time.monotonic(), size))
    end, finish = sv.EntryEnd(size_bytes=size), sv.Finish(entry_count=1, data_bytes=size)
    yield sv.BackupRequest(parts=[sv.BackupPart(entry_end=end), sv.BackupPart(finish=finish)])


def _asked_to_wait_s(error: grpc.RpcError) -> float | None:
    """How long the server asks to wait before another try; None: it does not say that there is use in one."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an error of a call is a call
    for detail in status.details if status is not None else ():
        asked = error_details_pb2.RetryInfo()
        if detail.Unpack(asked):
            return float(asked.retry_delay.ToTimedelta().total_seconds())
    return None


# --- the bystander


@dataclass(frozen=True, slots=True)
class Asked:
    """One small call."""

    method: str
    begun_s: float
    seconds: float
    code: str
    """OK, or how it failed."""


def stand_by(config: Path, parent: Connection) -> None:
    """Calls GetServerInfo and ListDatasets by turns, one every 100 ms, until a line comes; reports how long each took."""
    settings = load_settings(config)
    metadata: Metadata = (("authorization", f"Bearer {settings.token}"),)
    asked: list[Asked] = []
    with grpc.insecure_channel(settings.server, options=OPTIONS) as channel:
        stub = StaddleServiceStub(channel)
        stub.GetServerInfo(sv.GetServerInfoRequest(), metadata=metadata, timeout=CALL_S)
        parent.send("ready")
        next_s = time.monotonic()
        calls: list[Any] = []
        while not parent.poll(max(0.0, next_s - time.monotonic())):
            next_s += EVERY_S
            if len(calls) % 2:
                calls.append(_ask(stub.ListDatasets, sv.ListDatasetsRequest(), metadata, asked))
            else:
                calls.append(_ask(stub.GetServerInfo, sv.GetServerInfoRequest(), metadata, asked))
        for call in calls:
            with suppress(grpc.RpcError):
                call.result()
        while len(asked) < len(calls):
            time.sleep(EVERY_S)  # what is called back comes a moment after the result
    parent.send(asked)


def _ask(method: Any, request: Any, metadata: Metadata, asked: list[Asked]) -> Any:
    name, begun_s = type(request).__name__.removesuffix("Request"), time.monotonic()
    call = method.future(request, metadata=metadata, timeout=CALL_S)
    call.add_done_callback(
        lambda done: asked.append(Asked(name, begun_s, time.monotonic() - begun_s, done.code().name))
    )
    return call
