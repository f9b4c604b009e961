"""One dataset: what no RPC answers."""

from __future__ import annotations

from staddle.v1 import resources_pb2 as pb

from staddle_server.api import convert
from staddle_server.api.http.rest.operations import Handler, RestRequest
from staddle_server.catalog import Catalog


def dataset_of(catalog: Catalog) -> Handler:
    """Return the handler that answers with one dataset."""

    def handle(asked: RestRequest) -> pb.Dataset:
        asked.call.facts["dataset"] = asked.given["dataset"]
        name = convert.dataset_name(asked.given["dataset"])
        return convert.dataset_out(catalog.datasets.get(asked.call.principal.tenant, name))

    return handle
