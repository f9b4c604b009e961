"""REST: addresses, parameters, roles, and answers in JSON."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from http_door import ask, open_http
from rest_door import RestDoor, name_of
from servers import Running
from thin import back_up

ODD = "srv/www 100% ünder?#&+"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestDoor]:
    running = Running(tmp_path_factory.mktemp("rest"))
    stub = running.stub()
    back_up(stub, "www", {"a": b"1", "d/b": b"22"})
    back_up(stub, ODD, {"x": b"1"})
    yield RestDoor(running, open_http(running))
    running.stop()


def test_lists_come_as_the_json_of_the_rpc(place: RestDoor) -> None:
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


def test_a_dataset_with_odd_characters_has_an_address(place: RestDoor) -> None:
    address = f"/v1/datasets/{name_of(ODD)}/backups/latest"
    assert place.get(address).said["backup"]["dataset"] == ODD
    assert place.get(address.replace("%2F", "/")).status == 404


def test_a_backup_is_named_by_id_by_its_first_digits_and_by_a_time(place: RestDoor) -> None:
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
        ("/v1/datasets/www/backups/latest/changes", "from"),
        ("/v1/datasets/www/backups?from=x", "from"),
        ("/v1/datasets/www/backups?from=2026-01-01T00:00:00.1e999Z", "from"),
        ("/v1/datasets/www/backups?host=a%00b", "host"),
        ("/v1/datasets/www/backups?host=a%0Ab", "host"),
        ("/v1/datasets/www/backups?tag=a%00b", "tag"),
        ("/v1/runs?outcome=FAILED", "outcome"),
        ("/v1/datasets/www/backups/latest/entries?path=../d", "path"),
        ("/v1/datasets/www/backups/latest/entries?recursive=1", "recursive"),
    ],
)
def test_a_bad_parameter_is_named(place: RestDoor, path: str, field: str) -> None:
    found = place.get(path)
    assert (found.status, found.said["code"]) == (400, "invalid_argument"), found.said
    assert found.info.metadata["field"] == field


def test_an_unknown_address_and_a_wrong_verb_say_so(place: RestDoor) -> None:
    for path in ("/v1/", "/v1/x", "/v1/datasets/", "/v1/datasets//backups", "/v1/datasets/../datasets"):
        found = place.get(path)
        assert (found.status, found.said["code"]) == (404, "not_found"), path
        assert "/openapi.json" in found.said["message"]
    found = place.get("/v1/datasets", verb="PUT")
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


def test_a_head_has_the_headers_of_a_get(place: RestDoor) -> None:
    whole, head = place.get("/v1/datasets"), place.get("/v1/datasets", verb="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))


def test_a_call_has_an_id_and_needs_its_token(place: RestDoor) -> None:
    assert (
        place.get("/v1/datasets", **{"staddle-call": "my-own-call"}).headers["staddle-call"] == "my-own-call"
    )
    found = place.get("/v1/datasets", role=None)
    assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
    found = ask(place.port, "/v1/datasets?nonsense", None, {"authorization": "Bearer x"})
    assert (found.status, found.info.reason) == (401, "UNAUTHENTICATED")


def test_a_body_where_none_belongs_is_refused(place: RestDoor) -> None:
    headers = {"authorization": f"Bearer {place.running.token('reader')}"}
    found = ask(place.port, "/v1/datasets", b"{}", headers, "GET")
    assert (found.status, found.info.metadata["field"]) == (400, "body")


# ---------------------------------------------------------------------- looking


def test_one_dataset_and_what_it_has(place: RestDoor) -> None:
    listed = place.get("/v1/datasets").said["datasets"]
    assert place.get("/v1/datasets/www").said == listed[1]
    assert place.get(f"/v1/datasets/{name_of(ODD)}").said == listed[0]
    assert place.get("/v1/datasets/x").info.reason == "DATASET_NOT_FOUND"
    server = place.get("/v1/server").said
    assert (server["tenant"], server["role"]) == ("default", "reader")
    assert place.get("/v1/status").said["datasetCount"] == "2"
    assert {each["dataset"] for each in place.get("/v1/runs").said["runs"]} == {"www", ODD}
    runs = place.get(f"/v1/datasets/{name_of(ODD)}/runs?outcome=RUN_OUTCOME_DONE&outcome=RUN_OUTCOME_FAILED")
    assert [each["dataset"] for each in runs.said["runs"]] == [ODD]
    assert place.get("/v1/uploads", role="admin").said == {}


TAGS = (
    {"env": "prod", "team": "a"},
    {"env": "Prod"},
    {"env": "test", "x": 'say "env":"prod"', 'y"env': "prod"},
    {},
    {"x": 'a,"env":"prod"', "y": "%_"},
)


@pytest.fixture(scope="module")
def tagged(place: RestDoor) -> list[str]:
    """The ids of backups, the newest first: the last of TAGS."""
    stub = place.running.stub()
    for number, tags in enumerate(TAGS):
        back_up(stub, "tagged", {"a": b"%d" % number}, tags=tags, host=f"h{number % 2}", new_root=True)
    found = place.get("/v1/datasets/tagged/backups").said["backups"]
    assert [each.get("tags", {}) for each in found] == list(reversed(TAGS))
    return [each["id"] for each in found]


@pytest.mark.parametrize(
    ("query", "which"),
    [
        ("tag=env=prod", [4]),
        ("tag=env", [2, 3, 4]),
        ("tag=env&tag=team", [4]),
        ("tag=env=prod&tag=team=b", []),
        ("tag=env=", []),
        ("tag=en", []),
        ("tag=y=%25_", [0]),
        ("tag=y=__", []),
        ("host=h1", [1, 3]),
        ("host=h1&tag=env", [3]),
        ("from=2126-01-01T00:00:00Z", []),
        ("to=2126-01-01T00:00:00%2B01:00&pageSize=2", [0, 1]),
        ("to=2001-01-01T00:00:00Z", []),
        ("held=true", []),
    ],
)
def test_backups_are_filtered(place: RestDoor, tagged: list[str], query: str, which: list[int]) -> None:
    found = place.get(f"/v1/datasets/tagged/backups?{query}").said.get("backups", [])
    assert [each["id"] for each in found] == [tagged[number] for number in which]


def test_a_time_divides_backups_and_pages_keep_the_filter(place: RestDoor, tagged: list[str]) -> None:
    middle = place.get(f"/v1/datasets/tagged/backups/{tagged[2]}").said["backup"]["beginTime"]
    for query, expected in ((f"from={middle}", tagged[:3]), (f"to={middle}", tagged[3:])):
        found = place.get(f"/v1/datasets/tagged/backups?{query}").said["backups"]
        assert [each["id"] for each in found] == expected
    address, seen, token = "/v1/datasets/tagged/backups?tag=env&pageSize=1", [], ""
    while True:
        page = place.get(f"{address}&pageToken={token}").said
        seen += [each["id"] for each in page.get("backups", [])]
        if not (token := quote(page.get("nextPageToken", ""))):
            break
        other = place.get(f"/v1/datasets/tagged/backups?pageSize=1&pageToken={token}")
        assert other.info.reason == "BAD_PAGE_TOKEN"
    assert seen == tagged[2:]


def test_changes_are_those_from_another_backup(place: RestDoor, tagged: list[str]) -> None:
    found = place.get(f"/v1/datasets/tagged/backups/latest/changes?from={tagged[-1][:8]}").said
    assert (found["fromBackupId"], found["toBackupId"]) == (tagged[-1], tagged[0])
    assert [(each["type"], each["after"]["path"]) for each in found["changes"]] == [
        ("CHANGE_TYPE_CONTENT", "a")
    ]


# ---------------------------------------------------------------------- keeping


def test_a_backup_is_deleted_and_undeleted(place: RestDoor) -> None:
    stub = place.running.stub()
    one = back_up(stub, "deleted", {"a": b"1"}).id
    address = f"/v1/datasets/deleted/backups/{one}"
    assert place.send("DELETE", address, role="writer").status == 403
    assert place.send("DELETE", "/v1/datasets/deleted/backups/latest").status == 400
    assert "purgeTime" in place.send("DELETE", address).said["backup"]
    assert place.get(address).status == 404
    assert place.get("/v1/datasets/deleted/backups").said == {}
    assert [
        each["id"] for each in place.get("/v1/datasets/deleted/backups?showDeleted=true").said["backups"]
    ] == [one]
    assert "purgeTime" not in place.send("POST", f"{address}/undelete").said["backup"]
    assert place.get(address).status == 200


def test_holds_protect_backups_and_datasets(place: RestDoor) -> None:
    stub = place.running.stub()
    one = back_up(stub, "held", {"a": b"1"}).id
    address = f"/v1/datasets/held/backups/{one}"
    assert place.send("PUT", f"{address}/hold", {}).info.metadata["field"] == "reason"
    assert place.send("PUT", f"{address}/hold", {"reason": "case 7"}).said["hold"]["reason"] == "case 7"
    assert [each["id"] for each in place.get("/v1/datasets/held/backups?held=true").said["backups"]] == [one]
    refused = place.send("DELETE", address)
    assert (refused.status, refused.info.reason) == (400, "PROTECTED")
    assert place.send("DELETE", f"{address}/hold").status == 200
    found = place.send("PUT", "/v1/datasets/held/hold", {"reason": "all", "backup": one})
    assert (found.status, found.info.metadata["field"]) == (400, "backup")
    assert place.send("PUT", "/v1/datasets/held/hold", {"reason": "all"}).said["hold"]["reason"] == "all"
    assert place.send("DELETE", address).info.reason == "PROTECTED"
    assert place.send("DELETE", "/v1/datasets/held/hold").said == {}
    until = "2100-01-01T00:00:00Z"
    kept = place.send("PUT", f"{address}/retention", {"untilTime": until}).said["backup"]
    assert kept["retainUntilTime"] == until
    assert place.send("DELETE", address).info.reason == "PROTECTED"


def test_a_policy_is_set_planned_and_applied(place: RestDoor) -> None:
    stub = place.running.stub()
    ids = [back_up(stub, "policy", {"a": b"%d" % number}).id for number in range(3)]
    address = "/v1/datasets/policy/retention"
    assert place.get(address).said["retention"] == {"minimum": "0s"}
    assert place.send("PATCH", address, {"policy": {"keepLast": 1}}, role="reader").status == 403
    set_ = place.send("PATCH", address, {"policy": {"keepLast": 1}})
    assert set_.said["retention"]["policy"] == {"keepLast": 1, "timeZone": "UTC"}
    assert place.get(address).said == set_.said
    plan = place.get(f"{address}/plan?withoutFreeBytes=true").said
    assert (
        plan["deleteCount"],
        plan["keepCount"],
        [each.get("goes", False) for each in plan["backups"]],
    ) == (
        2,
        1,
        [False, True, True],
    )
    applied = place.send("POST", f"{address}/apply", {"planToken": plan["planToken"]})
    assert sorted(applied.said["deletedBackupIds"]) == sorted(ids[:2])
    assert place.send("POST", f"{address}/apply", {"planToken": "x"}).status in {400, 409}


def test_put_sets_all_of_a_retention_and_patch_what_is_given(place: RestDoor) -> None:
    back_up(place.running.stub(), "put", {"a": b"1"})
    address = "/v1/datasets/put/retention"

    def sent(verb: str, body: object) -> dict[str, object]:
        answer = place.send(verb, address, body)
        assert answer.status == 200, answer.said
        found: dict[str, object] = answer.said["retention"]
        return found

    policy = {"keepLast": 1, "timeZone": "UTC"}
    assert sent("PUT", {"policy": {"keepLast": 1}, "minimum": "60s"}) == {"policy": policy, "minimum": "60s"}
    assert sent("PATCH", {"minimum": "30s"}) == {"policy": policy, "minimum": "30s"}
    assert sent("PUT", {"policy": {"keepLast": 1}}) == {"policy": policy, "minimum": "0s"}
    assert sent("PATCH", {"minimum": "30s"})["policy"] == policy
    assert sent("PUT", {"minimum": "60s"}) == {"minimum": "60s"}
    refused = place.send("PUT", address)
    assert (refused.status, "it must be an object, such as {}" in refused.said["message"]) == (400, True)
    assert place.get(address).said["retention"] == {"minimum": "60s"}
    assert sent("PUT", {"policy": {"keepLast": 1}, "minimum": "60s"})["policy"] == policy
    assert sent("PUT", {"policy": None, "minimum": "60s"}) == {"minimum": "60s"}
    assert sent("PUT", {}) == {"minimum": "0s"}
    assert place.send("PUT", address, {"policy": {}, "dataset": "other"}).status == 400
    assert place.send("PUT", address, {}, role="writer").status == 403


def test_an_expectation_is_set_and_removed_and_a_failed_run_reported(place: RestDoor) -> None:
    address = f"/v1/datasets/{name_of(ODD)}/expectation"
    found = place.send("PUT", address, {"every": "86400s", "grace": "7200s"}).said["expectation"]
    assert (found["dataset"], found["every"]) == (ODD, "86400s")
    assert [each["dataset"] for each in place.get("/v1/expectations").said["expectations"]] == [ODD]
    assert place.send("DELETE", address).said == {}
    assert place.get("/v1/expectations").said == {}
    run = place.send(
        "POST", f"/v1/datasets/{name_of(ODD)}/runs", {"reason": "disk gone"}, role="writer"
    ).said["run"]
    assert (run["dataset"], run["outcome"], run["reason"]) == (ODD, "RUN_OUTCOME_FAILED", "disk gone")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"{", "application/json"),
        (b'{"reason": 1}', "application/json"),
        (b'{"reasons": "x"}', "application/json"),
        (b'{"reason": "x", "dataset": "y"}', "application/json"),
        (b'{"reason": "\xff"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"reason": "x"}', "application/x-www-form-urlencoded"),
        (b'{"reason": "x"}', "text/plain"),
    ],
)
def test_a_bad_body_is_refused_and_changes_nothing(place: RestDoor, body: bytes, kind: str) -> None:
    headers = place.headers("admin") | {"content-type": kind}
    found = ask(place.port, "/v1/datasets/www/hold", body, headers, "PUT")
    assert (found.status, found.said["code"]) == (400, "invalid_argument"), found.said
    assert place.get("/v1/datasets/www/retention").said["retention"] == {"minimum": "0s"}


def test_a_number_without_an_end_is_a_bad_body(place: RestDoor) -> None:
    headers = place.headers("admin") | {"content-type": "application/json"}
    found = ask(place.port, "/v1/datasets/www/expectation", b'{"every": "0.1e400s"}', headers, "PUT")
    assert (found.status, found.said["code"]) == (400, "invalid_argument"), found.said


def test_a_body_in_another_encoding_is_refused(place: RestDoor) -> None:
    headers = place.headers("admin") | {"content-type": "application/json", "content-encoding": "gzip"}
    found = ask(place.port, "/v1/datasets/www/hold", gzip.compress(b'{"reason": "x"}'), headers, "PUT")
    assert (found.status, found.info.metadata["field"]) == (400, "Content-Encoding")
