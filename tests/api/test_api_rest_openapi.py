"""OpenAPI: valid, complete, and true of a server with data when requests are generated from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import hypothesis
import pytest
import schemathesis
from http_door import JSON, ask, open_http
from hypothesis import HealthCheck, Phase, given
from openapi_spec_validator import OpenAPIV31SpecValidator
from rest_door import TABLE, RestDoor
from schemathesis import GenerationMode
from servers import Running
from staddle_server.api.http.connect import STATUSES
from staddle_server.api.http.rest.openapi import openapi, path_of
from staddle_server.api.http.rest.operations import PATH, QUERY, Operation
from staddle_server.base.limits import HTTP_HEAD_BYTES_MAX
from thin import back_up

DESCRIBED = openapi(TABLE)
IDS = [each.id or each.name for each in TABLE]
SCHEMA = schemathesis.openapi.from_dict(DESCRIBED)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    *schemathesis.checks.CHECKS.get_by_names(
        [
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "negative_data_rejection",
            "ignored_auth",
        ]
    ),
]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestDoor]:
    running = Running(tmp_path_factory.mktemp("openapi"))
    stub = running.stub()
    for number in range(3):
        back_up(stub, "www", {"a": b"%d" % number, "etc/hosts": b"localhost"}, tags={"env": "prod"})
    yield RestDoor(running, open_http(running))
    running.stop()


def test_the_description_is_valid() -> None:
    OpenAPIV31SpecValidator(DESCRIBED).validate()


def test_the_description_has_every_row_of_the_table_once(door: RestDoor) -> None:
    served = door.get("/openapi.json", role=None).said
    assert served["paths"].keys() == {path_of(each) for each in TABLE}
    found = [each["operationId"] for path in served["paths"].values() for each in path.values()]
    assert sorted(found) == sorted(IDS)
    assert len(set(found)) == len(TABLE)


def test_every_row_says_what_it_is() -> None:
    for each in TABLE:
        assert re.fullmatch(r"[A-Z].*\.", each.about), each
        assert each.tag
        assert set(each.errors) <= set(STATUSES)
        assert set(re.findall(r"{(\w+)", each.path)) == {one.name for one in each.of("path")}
        assert all(one.about.endswith(".") for one in each.parameters), each


CASES = [
    pytest.param(row, mode, real, id=f"{row.id or row.name}-{mode.value}-{'real' if real else 'any'}")
    for row in TABLE
    for mode in GenerationMode
    for real in ((True, False) if "{" in row.path else (False,))
]


@pytest.mark.parametrize(("row", "mode", "real"), CASES)
def test_generated_requests_get_what_the_description_says(
    door: RestDoor, row: Operation, mode: GenerationMode, real: bool
) -> None:
    generated(door, row, mode, real=real, examples=4)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "mode", "real"), CASES)
def test_many_generated_requests_get_what_the_description_says(
    door: RestDoor, row: Operation, mode: GenerationMode, real: bool
) -> None:
    generated(door, row, mode, real=real, examples=20)


def is_as_generated(row: Operation, query: Any) -> bool:
    """Whether a query says what was generated: an empty list is not in it, and one value of a list is a list. A longer
    one than a head may have is no request at all, and its answer is not the description's.
    """
    if len(urlencode(query or {}, doseq=True, errors="replace")) > HTTP_HEAD_BYTES_MAX // 2:
        return False
    lists = {one.name for one in row.of(QUERY) if one.many}
    return all(
        value not in ([], {}) and (name not in lists or isinstance(value, list))
        for name, value in (query or {}).items()
    )


def generated(door: RestDoor, row: Operation, mode: GenerationMode, *, real: bool, examples: int) -> None:
    """Send requests; the same ones in every run. `real`: the address is of something that exists."""
    more: dict[str, Any] = {}
    if real:
        # Another one each time: earlier requests may have deleted, held and retained the last.
        backup = back_up(door.running.stub(), "www", {"a": b"1", "etc/hosts": b"localhost"}).id
        names = {"dataset": "www", "backup": backup, "path": "etc/hosts"}
        more["path_parameters"] = {one.name: names[one.name] for one in row.of(PATH)}
    operation = SCHEMA[path_of(row)][row.verb]
    cases = operation.as_strategy(generation_mode=mode, **more)
    strategy = cases.filter(lambda case: is_as_generated(row, case.query))
    headers = door.headers("admin")

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def tried(case: schemathesis.Case) -> None:
        case.call_and_validate(f"http://127.0.0.1:{door.port}", headers=headers, checks=CHECKS)

    try:
        tried()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "a valid request must exist"


def test_the_page_shows_every_row_and_asks_nobody_else(door: RestDoor) -> None:
    found = door.get("/docs", role=None)
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    page = found.body.decode()
    for row in TABLE:
        assert f'<article id="{row.id or row.name}">' in page
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', page) == ["/openapi.json"]
    assert "<script" not in page
    targets = re.findall(r'href="#([^"]*)"', page)
    assert targets
    assert set(targets) <= set(re.findall(r'id="([^"]*)"', page))


def test_every_command_of_the_page_names_its_operation(door: RestDoor) -> None:
    page = door.get("/docs", role=None).body.decode()
    commands = re.findall(r"<pre>curl -s (?:-X (\w+) )?&#34;\$URL(/v1/[^?&]*)", page)
    assert len(commands) == len(TABLE)
    for (verb, path), row in zip(commands, TABLE, strict=True):
        assert (verb or "GET") == row.verb
        assert path.count("/") >= row.path.count("/")
        found = ask(door.port, path, None, {**door.headers("reader"), "content-type": JSON}, verb or "GET")
        assert found.status in {200, 400, 403, 404}, path
