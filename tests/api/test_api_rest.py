"""REST: addresses, parameters, roles, and answers in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

import pytest
from http_door import Answer, ask, open_http
from servers import Running
from thin import back_up

ODD = "srv/www 100% ünder?#&+"


class Place(NamedTuple):
    running: Running
    port: int

    def get(self, path: str, role: str | None = "reader", verb: str = "GET", **headers: str) -> Answer:
        if role is not None:
            headers["authorization"] = f"Bearer {self.running.token(role)}"
        return ask(self.port, path, None, headers, verb)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    running = Running(tmp_path_factory.mktemp("rest"))
    stub = running.stub()
    back_up(stub, "www", {"a": b"1", "d/b": b"22"})
    back_up(stub, ODD, {"x": b"1"})
    yield Place(running, open_http(running))
    running.stop()


def test_lists_come_as_the_json_of_the_rpc(place: Place) -> None:
    found = place.get("/v1/datasets")
    assert found.status == 200
    assert found.headers["content-type"] == "application/json"
    assert [each["name"] for each in found.said["datasets"]] == [ODD, "www"]
    first = place.get("/v1/datasets?pageSize=1").said
    second = place.get(f"/v1/datasets?pageSize=1&pageToken={quote(first['nextPageToken'])}").said
    assert [each["name"] for each in first["datasets"] + second["datasets"]] == [ODD, "www"]
    entries = place.get("/v1/datasets/www/backups/latest/entries?path=d").said["entries"]
    assert [each["path"] for each in entries] == ["d/b"]
    entries = place.get("/v1/datasets/www/backups/latest/entries?recursive=true").said["entries"]
    assert [each["path"] for each in entries] == ["a", "d", "d/b"]


def test_a_dataset_with_odd_characters_has_an_address(place: Place) -> None:
    address = f"/v1/datasets/{quote(ODD, safe='')}/backups/latest"
    assert place.get(address).said["backup"]["dataset"] == ODD
    assert place.get(address.replace("%2F", "/")).status == 404


def test_a_backup_is_named_by_id_by_its_first_digits_and_by_a_time(place: Place) -> None:
    backup = place.get("/v1/datasets/www/backups/latest").said["backup"]
    for name in (backup["id"], backup["id"][:6], "at=2126-01-01T00:00:00Z", f"at={backup['commitTime']}"):
        assert place.get(f"/v1/datasets/www/backups/{name}").said["backup"] == backup
    found = place.get("/v1/datasets/www/backups/at=2001-01-01T00:00:00Z")
    assert (found.status, found.info.reason) == (404, "BACKUP_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/datasets?pageSize=x", "pageSize"),
        ("/v1/datasets?pageSize=1001", "pageSize"),
        ("/v1/datasets?pageSize=-1", "pageSize"),
        ("/v1/datasets?pageSize=1&pageSize=1", "pageSize"),
        ("/v1/datasets?page_size=1", "page_size"),
        ("/v1/datasets?pageToken=x", "page_token"),
        ("/v1/datasets?pageToken=%zz", "pageToken"),
        ("/v1/datasets?" + "a=1&" * 101, "query"),
        ("/v1/datasets/%FF/backups/latest", "dataset"),
        ("/v1/datasets/%0A/backups/latest", "dataset"),
        (f"/v1/datasets/{'x' * 256}/backups/latest", "dataset"),
        ("/v1/datasets/w%w/backups/latest", "dataset"),
        ("/v1/datasets/www/backups/at=yesterday", "backup"),
        ("/v1/datasets/www/backups/%FF", "backup"),
        ("/v1/datasets/www/backups/xyz", "backup"),
        ("/v1/datasets/www/backups/latest/entries?path=../d", "path"),
        ("/v1/datasets/www/backups/latest/entries?recursive=1", "recursive"),
    ],
)
def test_a_bad_parameter_is_named(place: Place, path: str, field: str) -> None:
    found = place.get(path)
    assert (found.status, found.said["code"]) == (400, "invalid_argument"), found.said
    assert found.info.metadata["field"] == field


def test_an_unknown_address_and_a_wrong_verb_say_so(place: Place) -> None:
    for path in ("/v1/", "/v1/x", "/v1/datasets/", "/v1/datasets//backups", "/v1/datasets/../datasets"):
        found = place.get(path)
        assert (found.status, found.said["code"]) == (404, "not_found"), path
    found = place.get("/v1/datasets", verb="PUT")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


def test_a_head_has_the_headers_of_a_get(place: Place) -> None:
    whole, head = place.get("/v1/datasets"), place.get("/v1/datasets", verb="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))


def test_a_call_has_an_id_and_needs_its_token(place: Place) -> None:
    assert (
        place.get("/v1/datasets", **{"staddle-call": "my-own-call"}).headers["staddle-call"] == "my-own-call"
    )
    found = place.get("/v1/datasets", role=None)
    assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
    found = ask(place.port, "/v1/datasets?nonsense", None, {"authorization": "Bearer x"})
    assert (found.status, found.info.reason) == (401, "UNAUTHENTICATED")


def test_a_body_where_none_belongs_is_refused(place: Place) -> None:
    headers = {"authorization": f"Bearer {place.running.token('reader')}"}
    found = ask(place.port, "/v1/datasets", b"{}", headers, "GET")
    assert (found.status, found.info.metadata["field"]) == (400, "body")
