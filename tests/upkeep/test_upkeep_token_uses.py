"""When tokens were last used: noted beside the calls, and not at all while the catalog takes no writes."""

from __future__ import annotations

import pytest
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.upkeep.token_uses import TokenUses


def used(running: Running) -> dict[str, int | None]:
    return {each.name: each.used_ns for each in running.catalog.tokens.list_all(running.tenant)}


def test_a_use_is_noted_after_the_call_and_a_later_one_later(running: Running) -> None:
    stub = running.stub("reader", name="web")
    running.token("writer", name="idle")
    stub.ListDatasets(sv.ListDatasetsRequest())
    assert used(running) == {"web": None, "idle": None}
    running.service.token_uses.write()
    first = used(running)["web"]
    assert first is not None
    assert abs(first - running.clock.now_ns()) < 60 * 10**9
    running.service.token_uses.write()
    assert used(running) == {"web": first, "idle": None}
    running.clock.ahead_s += 400
    stub.ListDatasets(sv.ListDatasetsRequest())
    running.service.token_uses.write()
    later = used(running)["web"]
    assert later is not None
    assert later - first >= 400 * 10**9


def test_a_use_before_an_orderly_end_is_not_lost(running: Running) -> None:
    running.stub("reader", name="web").ListDatasets(sv.ListDatasetsRequest())
    running.restart()
    assert used(running)["web"] is not None


def test_a_refused_call_is_no_use(running: Running) -> None:
    with pytest.raises(Exception, match="needs a token with the role"):
        running.stub("reader", name="web").ListUploads(sv.ListUploadsRequest())
    running.service.token_uses.write()
    assert used(running)["web"] is None


def test_what_cannot_be_written_waits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.token("reader", name="web")
    running.token("reader", name="later")
    ids = {each.name: each.id for each in running.catalog.tokens.list_all(running.tenant)}
    token = ids["web"]
    taken, takes_writes, times = [{token}, {ids["later"]}, set()], [False, True, True], [7, 8, 9]
    uses = TokenUses(running.catalog, lambda: taken.pop(0), lambda: takes_writes.pop(0), lambda: times.pop(0))
    note = running.catalog.tokens.note_used

    def refuse(*_: object) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "the catalog is locked")

    uses.write()
    assert used(running)["web"] is None
    monkeypatch.setattr(running.catalog.tokens, "note_used", refuse)
    uses.write()
    assert used(running)["web"] is None
    monkeypatch.setattr(running.catalog.tokens, "note_used", note)
    uses.write()
    assert used(running) == {"web": 7, "later": 8}
    running.catalog.tokens.note_used({token: 3})
    assert used(running)["web"] == 7
