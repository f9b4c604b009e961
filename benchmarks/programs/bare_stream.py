"""Both ends of one gRPC stream that do nothing but carry it: what a stream of Staddle's is measured against, and measured with.

The server has the options and the allocator of Staddle's, gets one stream and drops it, or sends the same message again and again.
The client has the channel of Staddle's library, sends messages that were made before, or drops what comes; it knows neither's
messages, so that it works against both servers.

    python -m benchmarks.programs.bare_stream serve --listen 127.0.0.1:0
    python -m benchmarks.programs.bare_stream send METHOD FILE...         each file: messages, as `write_messages` has them
    python -m benchmarks.programs.bare_stream receive METHOD FILE         the request is the first message of the file

The client finds its server as the library does, or by --server; it prints one line of JSON.
"""

import argparse
import json
import signal
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from staddle._transport.channel import tune_malloc
from staddle._transport.servers import Servers
from staddle._transport.settings import load_settings
from staddle_server.api.grpc.server import OPTIONS
from staddle_server.app import allocator
from staddle_server.base.limits import MESSAGE_BYTES_MAX

from benchmarks.programs.processes import Server

SERVICE: Final = "staddle.benchmarks.Pipe"
IN: Final = f"/{SERVICE}/In"
OUT: Final = f"/{SERVICE}/Out"
DEADLINE_S: Final = 600.0
READY_S: Final = 20.0
THREADS: Final = 8
GRACE_S: Final = 1.0
_LENGTH: Final = struct.Struct("<I")
_ORDER: Final = struct.Struct("<QI")
"""What a call of OUT asks for: so many bytes, in messages of so many."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What the client saw of one stream."""

    seconds: float
    """From the call to its end; for what is sent, to the server's answer."""
    cpu_s: float
    messages: int
    message_bytes: int


# --- messages in files


def write_messages(path: Path, messages: Iterable[bytes]) -> None:
    """Each with its length before it."""
    with path.open("wb") as file:
        for message in messages:
            file.write(_LENGTH.pack(len(message)))
            file.write(message)


def read_messages(path: Path) -> Iterator[bytes]:
    """What `write_messages` wrote. Raises ValueError for another file."""
    with path.open("rb") as file:
        while head := file.read(_LENGTH.size):
            size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MESSAGE_BYTES_MAX + 1
            message = file.read(size) if size <= MESSAGE_BYTES_MAX else b""
            if len(message) != size:
                raise ValueError(f"{path} does not hold messages of at most {MESSAGE_BYTES_MAX} bytes")
            yield message


def order(data_bytes: int, message_bytes: int) -> bytes:
    """The request of OUT."""
    return _ORDER.pack(data_bytes, message_bytes)


# --- the server


class PipeServer(Server):
    """The server of this module. Its directory is only a name: the log lies beside it."""

    @property
    def command(self) -> list[str | Path]:
        return [
            sys.executable,
            "-m",
            "benchmarks.programs.bare_stream",
            "serve",
            "--listen",
            self.address,
            *self.options,
        ]


def _drop(messages: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
    """Answers how many bytes came."""
    return str(sum(map(len, messages))).encode()


def _repeat(asked: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
    data_bytes, message_bytes = _ORDER.unpack(asked)
    message = bytes(min(message_bytes, MESSAGE_BYTES_MAX))
    while data_bytes > 0:
        yield message if data_bytes >= len(message) else message[:data_bytes]
        data_bytes -= len(message)


def serve(listen: str, cert: Path | None, key: Path | None) -> None:
    """Serves until SIGTERM; says where it listens, as staddle-server does."""
    allocator.tune()
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "In": grpc.stream_unary_rpc_method_handler(_drop),
        "Out": grpc.unary_stream_rpc_method_handler(_repeat),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    if cert is not None and key is not None:
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
        port = server.add_secure_port(listen, credentials)
    else:
        port = server.add_insecure_port(listen)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(GRACE_S))
    print(f"Listening on {listen.rpartition(':')[0]}:{port}", flush=True)
    server.wait_for_termination()


# --- the client


def _connected(server: str | None) -> tuple[grpc.Channel, tuple[tuple[str, str], ...]]:
    """The library's own channel, connected, and the metadata of its calls."""
    tune_malloc()
    ours = Servers(load_settings(server=server))
    connection = ours.channel()
    connection.method("Backup")
    channel = connection._channel  # noqa: SLF001 - the same options, without the messages
    assert channel is not None
    grpc.channel_ready_future(channel).result(READY_S)
    return channel, ours.metadata()


def send(server: str | None, method: str, files: Iterable[Path]) -> Carried:
    """Sends all messages of the files in one stream, and waits for the answer."""
    messages = [message for path in files for message in read_messages(path)]
    channel, metadata = _connected(server)
    call: Any = channel.stream_unary(method, None, None)
    begun_s, worked_s = time.monotonic(), time.process_time()
    call(iter(messages), metadata=metadata, timeout=DEADLINE_S)
    seconds, cpu_s = time.monotonic() - begun_s, time.process_time() - worked_s
    return Carried(seconds, cpu_s, len(messages), sum(map(len, messages)))


def receive(server: str | None, method: str, request: Path) -> Carried:
    """Calls with one message, and drops all that comes."""
    asked = next(read_messages(request))
    channel, metadata = _connected(server)
    call: Any = channel.unary_stream(method, None, None)
    count = size = 0
    begun_s, worked_s = time.monotonic(), time.process_time()
    for message in call(asked, metadata=metadata, timeout=DEADLINE_S):
        count += 1
        size += len(message)
    return Carried(time.monotonic() - begun_s, time.process_time() - worked_s, count, size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.programs.bare_stream", description=__doc__.partition("\n")[0]
    )
    ways = parser.add_subparsers(dest="way", required=True)
    serving = ways.add_parser("serve")
    serving.add_argument("--listen", default="127.0.0.1:0")
    serving.add_argument("--tls-cert", type=Path)
    serving.add_argument("--tls-key", type=Path)
    for way, count in (("send", "+"), ("receive", 1)):
        client = ways.add_parser(way)
        client.add_argument("--server")
        client.add_argument("method")
        client.add_argument("files", type=Path, nargs=count)
    given = parser.parse_args(arguments)
    if given.way == "serve":
        serve(given.listen, given.tls_cert, given.tls_key)
        return 0
    if given.way == "send":
        carried = send(given.server, given.method, given.files)
    else:
        carried = receive(given.server, given.method, given.files[0])
    print(json.dumps(asdict(carried)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
