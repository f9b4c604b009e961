"""A balancer of calls before several servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from staddle._transport.servers import UPLOAD_KEY


class Balancer(grpc.GenericRpcHandler):
    """A proxy that understands calls, and gives each to the next server; with `by_upload`, all of one upload to the same."""

    def __init__(self, addresses: list[str], *, by_upload: bool) -> None:
        self._channels = [grpc.insecure_channel(each) for each in addresses]
        self._next = itertools.count()
        self._by_upload = by_upload
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
        for each in self._channels:
            each.close()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def carry(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            carried = [
                (key, value) for key, value in context.invocation_metadata() if not key.startswith("user-")
            ]
            upload = dict(carried).get(UPLOAD_KEY)
            hashed = sum(upload.encode()) if self._by_upload and upload else next(self._next)
            channel = self._channels[hashed % len(self._channels)]
            answers = channel.stream_stream(details.method)(requests, metadata=carried)
            try:
                yield from answers
            except grpc.RpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(carry)
