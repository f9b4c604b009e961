"""The assembled service: from an opened catalog and store to a gRPC server that can be drained."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from staddle_server import __version__
from staddle_server.api.archive_calls import ArchiveCalls
from staddle_server.api.gate import Gate
from staddle_server.api.grpc.events import EventCalls
from staddle_server.api.grpc.info import InfoCalls
from staddle_server.api.grpc.reads import ReadCalls
from staddle_server.api.grpc.retention import RetentionCalls
from staddle_server.api.grpc.runs import RunCalls
from staddle_server.api.grpc.server import (
    CERTIFICATE,
    INTEGRITY,
    LOCK,
    NOTIFICATIONS,
    ROOM,
    SECOND_SITE,
    UPKEEP,
    WRITES,
    CallThreads,
    WireServer,
    methods,
)
from staddle_server.api.grpc.uploads import UploadCalls
from staddle_server.api.slots import Slots
from staddle_server.app.settings import ServiceSettings
from staddle_server.base.clock import Clock, SystemClock
from staddle_server.base.limits import INTEGRITY_EVERY_S, SERVER_BEAT_S
from staddle_server.base.observer import NOTHING, Observer
from staddle_server.base.threads import Threads
from staddle_server.catalog import Catalog, ServerIdentity, Terms
from staddle_server.restore.browse import Reads
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.locks import lock_of
from staddle_server.store.observed import ObservedBlobs
from staddle_server.store.segment_cache import SegmentCache
from staddle_server.store.space import Space
from staddle_server.tenancy.clock_guard import ClockGuard
from staddle_server.tenancy.records import finish_all
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.clock_watch import ClockWatch
from staddle_server.upkeep.condition import Conditions, Watches
from staddle_server.upkeep.events.datasets import TroubledDatasets
from staddle_server.upkeep.events.master_key import MasterKeyFile
from staddle_server.upkeep.events.own import CertificateDates, OwnState
from staddle_server.upkeep.events.sources import EndingTokens, FailingTargets, FillingDisks, Source
from staddle_server.upkeep.events.watch import EventWatch
from staddle_server.upkeep.gc.collector import collect
from staddle_server.upkeep.heartbeat import Heartbeat
from staddle_server.upkeep.held_lease import holder_name
from staddle_server.upkeep.integrity.copies import copies_task
from staddle_server.upkeep.integrity.drill import Drilling, FailedDrills
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.lock import lock_tasks
from staddle_server.upkeep.integrity.parity import parity_task
from staddle_server.upkeep.integrity.scrub import Scrubber
from staddle_server.upkeep.integrity.watch import Integrity
from staddle_server.upkeep.lifecycle.deletion import Deletion
from staddle_server.upkeep.lifecycle.holds import Holds
from staddle_server.upkeep.lifecycle.policies import TASK as RETENTION
from staddle_server.upkeep.lifecycle.policies import Policies
from staddle_server.upkeep.lifecycle.runs import RunHistory
from staddle_server.upkeep.notify.delivery import Notifier
from staddle_server.upkeep.replication.run import ReplicationPlan, replication_task
from staddle_server.upkeep.replication.site import SitePlace
from staddle_server.upkeep.schedule import Schedule, Task
from staddle_server.upkeep.store_watch import StoreWatch
from staddle_server.upkeep.token_uses import TokenUses
from staddle_server.upload.uploads import Uploads

if TYPE_CHECKING:
    from staddle_server.api.http.pages.visit import PageSources
    from staddle_server.api.http.server import HttpServer, Opening

GC_PATIENCE: Final = 4
"""The share of its period that a due collection waits for a moment without clients."""


class Service:
    """Everything that serves one data directory. Start it once; drain it once."""

    _http: HttpServer | None = None

    def __init__(
        self,
        catalog: Catalog,
        blobs: Blobs,
        keys: KeyStore,
        settings: ServiceSettings,
        *,
        clock: Clock | None = None,
        space: Space | None = None,
        cache: SegmentCache | None = None,
        second: SitePlace | None = None,
        certificates: Callable[[], CertificateDates | None] = lambda: None,
        observer: Observer = NOTHING,
        integrity_every_s: float = INTEGRITY_EVERY_S,
        beat_every_s: float = SERVER_BEAT_S,
    ) -> None:
        """Write the records that a crash left out, and build the server; serve nothing yet.

        `second`: where the store is copied to. `integrity_every_s`: how often it looks for new damage; 0: only
        at the start, and object locks are not extended either. `beat_every_s`: how often it tells the catalog that it lives; 0: only once.

        Raises:
            ParityLibraryMissing: Parity is requested, and pyeclib is not installed.

        """
        clock, blobs = clock or SystemClock(), _observed(catalog, blobs, observer)
        tenants = Tenants(blobs, catalog, keys, cache)
        self.finished_records = finish_all(tenants, catalog)
        self._openers = Threads(min(8, os.cpu_count() or 1) + 1, thread_name_prefix="open")
        self._heartbeat = Heartbeat(catalog, clock, beat_every_s)
        kept = self._kept = Kept(catalog, blobs, keys, tenants, clock)
        self._settings, self._space, self._id = settings, space, os.urandom(16)
        self._uploads = _uploads(kept, settings, space, self._id)
        guard = ClockGuard(catalog, clock)
        self.clock_watch = ClockWatch(guard)
        self._integrity = Integrity(kept, integrity_every_s)
        self.store_watch = _store_watch(kept, second, settings)
        watches = Watches(self.clock_watch, self._integrity, self.store_watch)
        own = OwnState(kept, space, watches, certificates, lambda: not self._heartbeat.failing)
        self.notifier = Notifier(catalog, guard, clock, lambda: self._events.works)
        runs = self._runs = _runs(kept, settings)
        asked = (own, TroubledDatasets(runs.troubled), FillingDisks(catalog, space))
        self._events = _event_watch(kept, guard, asked, self.notifier)
        policies = self._policies = Policies(catalog, tenants, clock, settings.retention_every_s)
        threads = CallThreads(settings.streams_max)
        self._gate = _gate(kept, settings.streams_max, guard, threads, observer)
        conditions = self._conditions = Conditions(watches, own.takes_backups, self._events.failing_targets)
        self._table = methods(
            UploadCalls(self._uploads, tenants),
            ReadCalls(self._reads(), catalog, tenants),
            _retention(kept, policies),
            RunCalls(runs, tenants),
            _info(kept, conditions, settings),
            events=EventCalls(catalog.events, tenants),
        )
        self._working = _parts(own, self._events)
        self._wire = WireServer(self._gate, self._table, threads, self._working)
        self.token_uses = _token_uses(kept, self._gate, own, guard)
        upkeep = Upkeep(policies, self._integrity, runs, self._openers, second)
        self._schedule = _schedule(kept, settings, upkeep, self._gate.is_busy)

    def start(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        own: str = "",
        place: AbstractContextManager[object] | None = None,
    ) -> int:
        """Compare the packs with the store, then listen on HOST:PORT or unix:PATH and serve; return the port
        (0 requests a free one).

        `own` is a second address, without TLS, for the server's own checks. `place` holds the addresses'
        places while they are bound, which is after the comparison: that may take minutes.

        Raises:
            RuntimeError: The address is in use or invalid.

        """
        self.clock_watch.start()
        self._integrity.start()
        self.store_watch.start()
        self.token_uses.start()
        port = self._wire.start(address, credentials, own, place)
        self._schedule.start()
        return port

    def start_http(self, opening: Opening) -> None:
        """Serve HTTP too.

        Raises:
            OSError: Another program listens there.

        """
        # The extra `http` may not be installed.
        from staddle_server.api.http.rest.table import RestParts
        from staddle_server.api.http.server import HttpServer
        from staddle_server.api.http.state import Sources

        kept, reads = self._kept, self._reads()
        sources = Sources(
            kept.catalog,
            self._gate,
            self._space,
            {name.rpartition("/")[2]: works for name, works in self._working.items()},
            lambda: self._integrity.known,
            lambda: self._uploads.open_count,
            opening.certificate_ends,
            self._settings.metrics_datasets,
            kept.clock.now_ns,
        )
        archives = ArchiveCalls(reads, self._uploads, kept.tenants, self._runs)
        parts = RestParts(kept.catalog, kept.tenants, reads, archives)
        public = self._settings.metrics == "public"
        pages = self._page_sources(opening.certificate_ends)
        self._http = HttpServer(
            self._gate, self._table, opening.metrics, sources, pages=pages, parts=parts, public=public
        )
        self._http.start(opening.listening, opening.tls)

    def _page_sources(self, certificate_ends: Callable[[], float] | None) -> PageSources:
        from staddle_server.api.http.pages.visit import PageSources

        kept = self._kept
        return PageSources(
            catalog=kept.catalog,
            tenants=kept.tenants,
            reads=self._reads(),
            runs=self._runs,
            policies=self._policies,
            conditions=self._conditions,
            space=self._space,
            this_server=lambda: self._events.server,
            certificate_ends=certificate_ends,
            scrub_period_s=self._settings.scrub_period_s,
            events_work=lambda: self._events.works,
            targets=lambda: self.notifier.names,
            now_ns=ClockGuard(kept.catalog, kept.clock).believed_ns,
            monotonic_s=kept.clock.monotonic_s,
        )

    def _reads(self) -> Reads:
        return Reads(self._kept.catalog, self._kept.tenants, self._kept.clock, self._openers)

    def join(self, endpoint: str, place: str = "") -> None:
        """Enter the started server into the catalog's list of servers, reachable at `endpoint`.

        `place` names its data directory: an earlier server there is gone.
        """
        self._heartbeat.start(
            ServerIdentity(self._id, place, socket.gethostname(), endpoint, __version__, holder_name())
        )
        self._events.start(endpoint)
        self.notifier.start()

    def drain(self, drain_s: float) -> None:
        """Stop: health becomes NOT_SERVING, new calls are refused, streams get this much time, then end at a
        checkpoint. Other servers may take the uploads over from the beginning.
        """
        self._heartbeat.drain()
        self._events.stop()
        self._wire.close(drain_s)
        self.notifier.stop()
        self._schedule.stop()
        self.clock_watch.stop()
        self._integrity.stop()
        self.store_watch.stop()
        self._uploads.close()
        if self._http is not None:
            self._http.stop()
        self._wire.stop()
        self.token_uses.stop()
        self._openers.shutdown()
        self._heartbeat.stop()


def _parts(own: OwnState, events: EventWatch) -> dict[str, Callable[[], bool]]:
    """Return whether each part of the service with a health name works."""
    return {
        WRITES: own.takes_backups,
        ROOM: own.has_room,
        UPKEEP: own.trusts_clock,
        INTEGRITY: own.is_whole,
        CERTIFICATE: own.certificates_last,
        LOCK: own.lock_lasts,
        SECOND_SITE: own.site_is_current,
        NOTIFICATIONS: events.reaches_targets,
    }


def _store_watch(kept: Kept, second: SitePlace | None, settings: ServiceSettings) -> StoreWatch:
    """Return the watch over object lock and second site."""
    place = "" if second is None else second.name
    return StoreWatch(kept.catalog, kept.clock, lock_of(kept.blobs), place, settings.replicate_every_s)


def _observed(catalog: Catalog, blobs: Blobs, observer: Observer) -> Blobs:
    """Return the store as it is used: with an observer, what it and the catalog do is counted."""
    if observer is NOTHING:
        return blobs
    catalog.database.observer = observer
    return ObservedBlobs(blobs, observer)


def _uploads(kept: Kept, settings: ServiceSettings, space: Space | None, server: bytes) -> Uploads:
    """Return the open uploads that this server writes."""
    return Uploads(
        kept.catalog,
        kept.tenants,
        kept.clock,
        lease_s=settings.lease_s,
        life_s=settings.upload_life_s,
        space=space,
        server=server,
        endpoint=str(settings.endpoint or ""),
    )


def _gate(kept: Kept, streams_max: int, guard: ClockGuard, threads: CallThreads, observer: Observer) -> Gate:
    """Return the gate: who may call, and how much at once."""
    catalog, tenants, clock = kept.catalog, kept.tenants, kept.clock
    gate = Gate(
        lambda token: catalog.tokens.authenticate(token, guard.believed_ns()),
        lambda tenant: tenants.get(tenant).name,
        # Leaves some for other tenants.
        Slots(streams_max, clock.monotonic_s, owner="tenant", owner_max=streams_max - streams_max // 4),
        clock.monotonic_s,
        lambda tokens: catalog.tokens.valid(tokens, guard.believed_ns()),
        decoded=tenants.decoded,
        check_threads=threads.check,
    )
    gate.observer = observer
    return gate


def _token_uses(kept: Kept, gate: Gate, own: OwnState, guard: ClockGuard) -> TokenUses:
    """Return what notes when tokens were used."""
    return TokenUses(kept.catalog, gate.take_used, own.takes_backups, guard.believed_ns)


def _retention(kept: Kept, policies: Policies) -> RetentionCalls:
    """Return what deletes backups, and what protects them."""
    catalog, tenants, clock = kept.catalog, kept.tenants, kept.clock
    return RetentionCalls(
        Deletion(catalog, tenants, clock), Holds(catalog, tenants, clock), policies, tenants
    )


def _runs(kept: Kept, settings: ServiceSettings) -> RunHistory:
    """Return the attempts to back up, and the expectations of datasets."""
    terms = Terms(settings.lease_s, settings.upload_life_s)
    return RunHistory(kept.catalog, kept.tenants, kept.clock, terms, settings.runs_kept_s)


def _info(kept: Kept, conditions: Conditions, settings: ServiceSettings) -> InfoCalls:
    """Return what informs clients about the server."""
    return InfoCalls(
        kept.tenants,
        kept.catalog.servers,
        kept.clock,
        conditions,
        streams_max=settings.streams_max,
        lease_s=settings.lease_s,
        life_s=settings.upload_life_s,
    )


def _event_watch(kept: Kept, guard: ClockGuard, own: Sequence[Source], notifier: Notifier) -> EventWatch:
    """Return what finds events, with all that it asks."""
    catalog = kept.catalog
    targets = FailingTargets(catalog, lambda: notifier.names)
    sources = [*own, targets, EndingTokens(catalog), FailedDrills(catalog), MasterKeyFile(kept.keys)]
    return EventWatch(catalog, guard, sources, notifier.wanting)


class Upkeep(NamedTuple):
    """What upkeep shares with the calls."""

    policies: Policies
    integrity: Integrity
    runs: RunHistory
    openers: Threads
    second: SitePlace | None


def _schedule(kept: Kept, settings: ServiceSettings, upkeep: Upkeep, busy: Callable[[], bool]) -> Schedule:
    """Return the upkeep that runs beside the calls."""
    scrubber = Scrubber(
        kept, period_s=settings.scrub_period_s, bytes_per_s=settings.scrub_bytes_per_s, busy=busy
    )
    plan = ReplicationPlan(settings.replicate_bytes_per_s, settings.replicate_grace_s)
    tasks = [
        Task(RETENTION, settings.retention_every_s, upkeep.policies.run),
        upkeep.runs.task(),
        *_parity(kept, settings.parity_percent),
        _collection(kept, settings.gc_every_s),
        scrubber.task(),
        _drilling(kept, settings, upkeep.openers, busy).task(),
        *upkeep.integrity.tasks(),
        *(lock_tasks(kept) if upkeep.integrity.is_watching else []),
        replication_task(kept, upkeep.second, plan, settings.replicate_every_s),
    ]
    return Schedule(tasks, kept.catalog, kept.clock, busy=busy)


def _drilling(kept: Kept, settings: ServiceSettings, openers: Threads, busy: Callable[[], bool]) -> Drilling:
    """Return what proves that backups can be restored."""
    return Drilling(
        kept, openers, period_s=settings.drill_period_s, bytes_per_s=settings.scrub_bytes_per_s, busy=busy
    )


def _parity(kept: Kept, percent: int) -> list[Task]:
    """Return the tasks that make parity of packs, and second copies of records and keys."""
    return [
        parity_task(kept.tenants, kept.catalog, kept.clock, percent),
        copies_task(kept.tenants, kept.catalog, kept.keys, on=percent > 0),
    ]


def _collection(kept: Kept, every_s: float) -> Task:
    """Return the garbage collection."""
    return Task(
        "gc",
        every_s,
        lambda stopping: collect(
            kept.catalog, kept.tenants, kept.clock, stopping, kept.catalog.database.observer
        ),
        patience_s=every_s / GC_PATIENCE,
    )
