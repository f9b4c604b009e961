"""One dataset, and its backups by what they are: what no RPC answers."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.api.http.rest.operations import RestRequest
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base.limits import MIB
from staddle_server.catalog import BackupFilter, Catalog
from staddle_server.tenancy.tenant import Tenants

PAGE = 100
PAGE_BYTES = 2 * MIB


class DatasetAddresses:
    """Answers these requests."""

    def __init__(self, catalog: Catalog, tenants: Tenants) -> None:
        self._catalog = catalog
        self._tenants = tenants

    def get(self, asked: RestRequest) -> pb.Dataset:
        """Return one dataset."""
        name = _named(asked)
        return convert.dataset_out(self._catalog.datasets.get(asked.call.principal.tenant, name))

    def backups(self, asked: RestRequest) -> sv.ListBackupsResponse:
        """Return the backups of a dataset that a filter lets pass, newest first, as ListBackups does."""
        given, tenant = asked.given, asked.call.principal.tenant
        dataset, among = _named(asked), _filter_of(asked.given)
        shown = given.get("showDeleted", False)
        tokens = PageTokens(self._tenants.get(tenant).secrets.token_key)
        query = ("backups by", dataset, shown, *among)
        before = tokens.read(query, given["pageToken"], int) if given.get("pageToken") else None
        found = self._catalog.backups.list_page(
            tenant,
            dataset,
            show_deleted=shown,
            before_number=before,
            limit=given.get("pageSize") or PAGE,
            among=among,
        )
        page = convert.fitting(map(convert.backup_out, found), PAGE_BYTES)
        more = tokens.make(query, page[-1].number) if found.more or len(found) > len(page) else ""
        return sv.ListBackupsResponse(backups=page, next_page_token=more)


def _named(asked: RestRequest) -> str:
    asked.call.facts["dataset"] = asked.given["dataset"]
    return convert.dataset_name(asked.given["dataset"])


def _filter_of(given: Any) -> BackupFilter:
    def time_of(name: str) -> int | None:
        if name not in given:
            return None
        moment = Timestamp()
        moment.FromJsonString(given[name])
        return convert.ns_of(moment, name)

    return BackupFilter(
        given.get("host", ""),
        time_of("from"),
        time_of("to"),
        tuple(given.get("tag", ())),
        given.get("held", False),
    )
