"""The service, joined from its rooms: from an opened catalog and store to a gRPC server that can be drained."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import grpc

from staddle_server.catalog import Catalog
from staddle_server.session.clock import Clock, SystemClock
from staddle_server.session.deletion import Deletion
from staddle_server.session.reads import Reads
from staddle_server.session.records import finish_all
from staddle_server.session.tenant import Tenants
from staddle_server.session.uploads import Uploads
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.upkeep.schedule import Schedule
from staddle_server.wire.call import Gate
from staddle_server.wire.info import InfoCalls
from staddle_server.wire.reads import ReadCalls
from staddle_server.wire.server import WireServer, methods
from staddle_server.wire.streams import Streams
from staddle_server.wire.uploads import UploadCalls


class Service:
    """Everything that serves one data directory. Start it once; drain it once."""

    def __init__(
        self,
        catalog: Catalog,
        blobs: Blobs,
        keys: KeyStore,
        *,
        streams_max: int,
        lease_s: float,
        upload_life_s: float,
        endpoint: str = "",
        clock: Clock | None = None,
    ) -> None:
        """Writes the records that a crash has left out, and builds the server; serves nothing yet."""
        clock = clock or SystemClock()
        tenants = Tenants(blobs, catalog, keys)
        self.finished_records = finish_all(tenants, catalog)
        self._openers = ThreadPoolExecutor(min(8, os.cpu_count() or 1) + 1, thread_name_prefix="open")
        self._uploads = Uploads(catalog, tenants, clock, lease_s=lease_s, life_s=upload_life_s)
        reads = Reads(catalog, tenants, clock, self._openers)
        table = methods(
            UploadCalls(self._uploads, tenants, endpoint),
            ReadCalls(reads, Deletion(catalog, tenants, clock), catalog, tenants),
            InfoCalls(tenants, clock, streams_max=streams_max, lease_s=lease_s, life_s=upload_life_s),
        )
        self._gate = Gate(
            lambda token: catalog.tokens.authenticate(token, clock.now_ns()),
            lambda tenant: tenants.get(tenant).name,
            Streams(streams_max, clock.monotonic_s),
            clock.monotonic_s,
        )
        self._wire = WireServer(self._gate, table, streams_max)
        self._schedule = Schedule((), catalog, clock)

    def start(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listens on HOST:PORT and serves; gives the port, which is a free one where 0 was asked for.

        Raises:
            RuntimeError: the address is in use, or is none.

        """
        port = self._wire.start(address, credentials)
        self._schedule.start()
        return port

    def drain(self, drain_s: float) -> None:
        """Stops: health says NOT_SERVING, new calls are refused, streams get so long, then end at a checkpoint."""
        self._wire.close(drain_s)
        self._schedule.stop()
        self._uploads.close()
        self._wire.stop()
        self._openers.shutdown()
