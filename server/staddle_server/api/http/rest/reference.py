"""The table for readers: /openapi.json for programs, and a page for people that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from staddle_server.api.http.connect import JSON
from staddle_server.api.http.rest.openapi import ABOUT, openapi, path_of
from staddle_server.api.http.rest.operations import QUERY, Operation

OPENAPI: Final = "/openapi.json"
PAGE: Final = "/docs"
TEMPLATES: Final = Path(__file__).with_name("templates")
_LINE_MAX: Final = 88
"""Characters of a command that the page shows in one line."""
_EXAMPLES: Final = {"dataset": "www", "backup": "latest", "path": "etc/hosts"}


def reference_routes(table: Sequence[Operation]) -> list[Route]:
    """Return the routes of both. They are the same for everybody, and need no token."""
    described = openapi(table)
    page, policy = _page(table, described)
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":"))

    async def respond_openapi(_: Request) -> Response:
        return Response(text, media_type=JSON)

    async def respond_page(_: Request) -> Response:
        return Response(page, headers={"content-security-policy": policy}, media_type="text/html")

    return [Route(OPENAPI, respond_openapi), Route(PAGE, respond_page)]


def _page(table: Sequence[Operation], described: dict[str, Any]) -> tuple[str, str]:
    """Return the page, and the policy under which a browser shows it: its own style, and nothing else."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    sections = [(tag, list(rows)) for tag, rows in groupby(table, lambda each: each.tag)]
    style = (TEMPLATES / "reference.css").read_text()
    page = environment.get_template("reference.html").render(
        about=ABOUT,
        sections=sections,
        described={
            (each.verb, each.path): described["paths"][path_of(each)][each.verb.lower()] for each in table
        },
        schemas=described["components"]["schemas"],
        curl=_curl,
        path_of=path_of,
        type_of=_type_of,
        style=style,
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return page, f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'; base-uri 'none'"


def _code(text: str) -> list[tuple[bool, str]]:
    """Return the parts of a text, each with whether it stands between backquotes."""
    return [(number % 2 == 1, part) for number, part in enumerate(text.split("`"))]


def _curl(each: Operation) -> str:
    """Return a command that does an operation."""
    path = re.sub(r"{(\w+)}", lambda found: quote(_example(each, found[1])), path_of(each))
    wanted = [one for one in each.of(QUERY) if one.required]
    query = "&".join(f"{one.name}={_EXAMPLES.get(one.name, 'ID')}" for one in wanted)
    lines = [
        f'curl -s "$URL{path}{"?" + query if query else ""}"',
        '-H "Authorization: Bearer $STADDLE_TOKEN"',
    ]
    if each.verb != "GET":
        lines[0] = lines[0].replace("curl -s", f"curl -s -X {each.verb}")
    if each.body is not None and each.body.message is None:
        lines.append("-T FILE")
    elif each.body is not None:
        lines.append(f"-H \"Content-Type: {JSON}\" -d '{json.dumps(each.body.example)}'")
    line = " ".join(lines)
    return line if len(line) <= _LINE_MAX else " \\\n  ".join(lines)


def _example(each: Operation, name: str) -> str:
    if name == "backup" and each.verb != "GET":
        return "ID"
    return _EXAMPLES[name]


def _type_of(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type_of(schema['items'])}"
    if schema.get("format") == "date-time":
        return "time"
    if "contentEncoding" in schema:
        return "bytes in base64"
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema.get("type") == "object" and "additionalProperties" in schema and "properties" not in schema:
        return f"{_type_of(schema['additionalProperties'])} by name"
    names = {"string": "text", "integer": "number", "boolean": "true or false"}
    return names.get(schema["type"], str(schema["type"]))
