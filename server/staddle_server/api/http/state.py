"""The state of the service at a scrape: what is in the catalog, and what this server knows by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from staddle_server import __version__
from staddle_server.api.gate import Gate
from staddle_server.base.clock import DAY_NS, NS
from staddle_server.base.errors import StaddleError
from staddle_server.catalog import Catalog, KnownDamage
from staddle_server.store.space import Space

log = logging.getLogger(__name__)


class Sources(NamedTuple):
    """Where the state is read.

    Attributes:
        catalog: What is stored, and what the servers do.
        gate: The calls in progress.
        space: The disks; None where the store is elsewhere and nothing is measured.
        parts: Whether each part of the service works, by its name in the metrics.
        damage: Known damage by a tenant's id.
        open_uploads: How many uploads this server writes.
        certificate_ends: When the certificate expires, in seconds since 1970; None without TLS.
        datasets_max: How many datasets have metrics of their own.
        now_ns: The time, to which runs of the last day count.

    """

    catalog: Catalog
    gate: Gate
    space: Space | None
    parts: Mapping[str, Callable[[], bool]]
    damage: Callable[[], Mapping[bytes, KnownDamage]]
    open_uploads: Callable[[], int]
    certificate_ends: Callable[[], float] | None
    datasets_max: int
    now_ns: Callable[[], int]


class StateCollector(Collector):
    """Reads the state for each scrape. If the catalog does not answer, the rest is still there."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._of_this_server()
        up = 1.0
        try:
            yield from list(self._of_catalog())
        except StaddleError as error:
            log.warning("the metrics lack what is in the catalog: %s", error.message)
            up = 0.0
        yield _gauge("catalog_up", "Whether the catalog answered this scrape.", up)

    # ------------------------------------------------------------------ this server

    def _of_this_server(self) -> Iterator[Metric]:
        of = self._sources
        build = GaugeMetricFamily("staddle_build_info", "The version of this server.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        parts = GaugeMetricFamily(
            "staddle_part_up", "Whether a part of the service works, as in its health.", labels=["part"]
        )
        for name, works in of.parts.items():
            parts.add_metric([name], works())
        yield parts
        yield from self._slots()
        yield _gauge("open_uploads", "Uploads that this server writes.", of.open_uploads())
        if of.space is not None and (free := of.space.free()):
            least = min(free, key=lambda each: each.free_bytes - each.min_bytes)
            yield _gauge("disk_free_bytes", "Free space of the disk with the least.", least.free_bytes)
            yield _gauge("disk_reserved_bytes", "What backups leave free there.", least.min_bytes)
        if of.certificate_ends is not None:
            yield _gauge(
                "certificate_expiry_timestamp_seconds",
                "When the server's certificate expires.",
                of.certificate_ends(),
            )

    def _slots(self) -> Iterator[Metric]:
        kinds = {"streams": self._sources.gate.streams, "calls": self._sources.gate.calls}
        figures = {kind: slots.figures() for kind, slots in kinds.items()}
        taken = GaugeMetricFamily("staddle_open_slots", "Calls in progress.", labels=["kind"])
        waits = CounterMetricFamily("staddle_slot_waits", "Calls that waited for a slot.", labels=["kind"])
        waited = CounterMetricFamily(
            "staddle_slot_wait_seconds", "How long calls waited for a slot.", labels=["kind"]
        )
        refused = CounterMetricFamily(
            "staddle_slot_refusals", "Calls that were refused for want of a slot.", labels=["kind"]
        )
        for kind, each in figures.items():
            taken.add_metric([kind], each.taken)
            waits.add_metric([kind], each.waits)
            waited.add_metric([kind], each.waited_s)
            refused.add_metric([kind], each.refusals)
        yield from (taken, waits, waited, refused)

    # ------------------------------------------------------------------ the catalog

    def _of_catalog(self) -> Iterator[Metric]:
        yield from self._datasets()
        yield self._runs()
        yield from self._stored()
        yield from self._damage()
        yield from self._upkeep()
        yield from self._replicas()
        servers = GaugeMetricFamily("staddle_servers", "Servers of this catalog.", labels=["state"])
        states = [each.state.name.lower() for each in self._sources.catalog.servers.list_all()]
        for state in ("live", "draining", "dead"):
            servers.add_metric([state], states.count(state))
        yield servers

    def _datasets(self) -> Iterator[Metric]:
        figures = self._sources.catalog.figures
        counts = figures.dataset_counts()
        total = GaugeMetricFamily("staddle_datasets", "Datasets.", labels=["tenant"])
        for tenant, count in counts.items():
            total.add_metric([tenant], count)
        yield total
        last = GaugeMetricFamily(
            "staddle_dataset_last_success_timestamp_seconds",
            "When the newest backup of a dataset was committed; 0: it never had one.",
            labels=["tenant", "dataset"],
        )
        late = GaugeMetricFamily(
            "staddle_dataset_late_timestamp_seconds",
            "From when a dataset is late by its expectation, or no longer muted.",
            labels=["tenant", "dataset"],
        )
        proven = GaugeMetricFamily(
            "staddle_dataset_proven_timestamp_seconds",
            "When a drill last found the newest backup of a dataset whole; 0: never yet.",
            labels=["tenant", "dataset"],
        )
        failed = GaugeMetricFamily(
            "staddle_dataset_drill_failed",
            "Datasets whose last drill found that the newest backup cannot be restored whole.",
            labels=["tenant", "dataset"],
        )
        most = self._sources.datasets_max
        listed = figures.datasets(most) if most else []
        for each in listed:
            last.add_metric([each.tenant, each.dataset], each.success_ns / NS)
            if each.late_ns is not None:
                late.add_metric([each.tenant, each.dataset], each.late_ns / NS)
            proven.add_metric([each.tenant, each.dataset], each.proven_ns / NS)
            if each.drill_failed:
                failed.add_metric([each.tenant, each.dataset], 1)
        yield from (last, late, proven, failed)
        yield _gauge(
            "datasets_left_out",
            "Datasets without a metric of their own (--metrics-datasets).",
            max(0, sum(counts.values()) - len(listed)),
        )

    def _runs(self) -> Metric:
        runs = GaugeMetricFamily(
            "staddle_runs_last_day",
            "Runs that began within the last 24 hours, by their outcome so far.",
            labels=["tenant", "outcome"],
        )
        since_ns = self._sources.now_ns() - DAY_NS
        for each in self._sources.catalog.figures.runs(since_ns):
            runs.add_metric([each.tenant, each.outcome.name.lower()], each.number)
        return runs

    def _stored(self) -> Iterator[Metric]:
        figures = self._sources.catalog.figures
        backups = GaugeMetricFamily(
            "staddle_backups", "Backups that are not deleted.", labels=["tenant", "kind"]
        )
        data = GaugeMetricFamily(
            "staddle_backup_data_bytes", "What these would restore.", labels=["tenant", "kind"]
        )
        logical: dict[str, int] = {}
        for each in figures.backups():
            labels = [each.tenant, each.kind.name.lower()]
            backups.add_metric(labels, each.number)
            data.add_metric(labels, each.data_bytes)
            logical[each.tenant] = logical.get(each.tenant, 0) + each.data_bytes
        packs = figures.packs()
        yield from (backups, data)
        stored = GaugeMetricFamily("staddle_stored_bytes", "Packs in use.", labels=["tenant"])
        condemned = GaugeMetricFamily(
            "staddle_condemned_bytes", "Packs that wait for their removal.", labels=["tenant"]
        )
        parity = GaugeMetricFamily("staddle_parity_bytes", "Parity of the packs in use.", labels=["tenant"])
        ratio = GaugeMetricFamily(
            "staddle_dedup_ratio",
            "What backups would restore, by what is stored for them.",
            labels=["tenant"],
        )
        unread = GaugeMetricFamily(
            "staddle_oldest_unread_timestamp_seconds",
            "When the pack that was not read for the longest time was read or written.",
            labels=["tenant"],
        )
        for pack in packs:
            stored.add_metric([pack.tenant], pack.live_bytes)
            condemned.add_metric([pack.tenant], pack.condemned_bytes)
            parity.add_metric([pack.tenant], pack.parity_bytes)
            if pack.live_bytes:
                ratio.add_metric([pack.tenant], logical.get(pack.tenant, 0) / pack.live_bytes)
            if pack.unread_ns is not None:
                unread.add_metric([pack.tenant], pack.unread_ns / NS)
        yield from (stored, condemned, parity, ratio, unread)

    def _damage(self) -> Iterator[Metric]:
        damage = self._sources.damage()
        packs = GaugeMetricFamily("staddle_damaged_packs", "Packs with known damage.", labels=["tenant"])
        segments = GaugeMetricFamily(
            "staddle_damaged_segments", "Segments with known damage.", labels=["tenant"]
        )
        none = KnownDamage(0, 0, 0)
        for row in self._sources.catalog.tenants.list_all():
            known = damage.get(row.id, none)
            packs.add_metric([row.name], known.packs)
            segments.add_metric([row.name], known.segments)
        yield from (packs, segments)

    def _upkeep(self) -> Iterator[Metric]:
        begun = GaugeMetricFamily(
            "staddle_task_begin_timestamp_seconds", "When an upkeep task last began.", labels=["task"]
        )
        ended = GaugeMetricFamily(
            "staddle_task_end_timestamp_seconds", "When an upkeep task last ended.", labels=["task"]
        )
        failed = GaugeMetricFamily(
            "staddle_task_failed", "Whether the last run of an upkeep task failed.", labels=["task"]
        )
        for run in self._sources.catalog.figures.tasks():
            begun.add_metric([run.name], (run.begun_ns or 0) / NS)
            if run.ended_ns is not None:
                ended.add_metric([run.name], run.ended_ns / NS)
                failed.add_metric([run.name], run.has_failed)
        yield from (begun, ended, failed)

    def _replicas(self) -> Iterator[Metric]:
        """Yield the second places by number: their names are paths."""
        whole = GaugeMetricFamily(
            "staddle_replica_whole_timestamp_seconds",
            "Everything that was decided before this time is at the second place.",
            labels=["replica"],
        )
        behind = GaugeMetricFamily(
            "staddle_replica_behind_bytes", "Packs that the second place lacks.", labels=["replica"]
        )
        records = GaugeMetricFamily(
            "staddle_replica_behind_records", "Records that the second place lacks.", labels=["replica"]
        )
        for number, each in enumerate(self._sources.catalog.replicas.list_all(), 1):
            if each.whole_ns is not None:
                whole.add_metric([str(number)], each.whole_ns / NS)
            behind.add_metric([str(number)], each.bytes_behind)
            records.add_metric([str(number)], each.records_behind)
        yield from (whole, behind, records)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"staddle_{name}", help_, value=value)
