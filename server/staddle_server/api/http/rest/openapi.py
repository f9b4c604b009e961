"""The table as OpenAPI 3.1. Source: https://spec.openapis.org/oas/v3.1.1.html"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from staddle_server.api.http.connect import JSON, STATUSES
from staddle_server.api.http.rest.operations import PATH, Answer, Body, Operation, RestParameter
from staddle_server.api.http.rest.schemas import PLACE, Schemas

SECURITY: Final = "token"
ERROR: Final = "Error"
ERRORS: Final = (
    "invalid_argument",
    "unauthenticated",
    "permission_denied",
    "resource_exhausted",
    "canceled",
    "internal",
    "unavailable",
)
"""The codes of errors that every operation has."""
ABOUT: Final = (
    "Datasets, backups and files of Staddle. Messages are those of its RPCs, in protobuf's JSON: a field that is "
    "absent is empty, zero or false. Lists come in pages: repeat the request with the `nextPageToken` of the answer as "
    "`pageToken` until there is none. Every answer has the header `Staddle-Call`, an id that the server's log has, too."
)

_ERROR_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "enum": sorted(STATUSES)},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "value": {"type": "string", "contentEncoding": "base64"},
                    "debug": {"type": "object"},
                },
                "required": ["type", "value"],
            },
        },
    },
    "required": ["code", "message"],
}


def openapi(table: Iterable[Operation]) -> dict[str, Any]:
    """Return the description of a table."""
    schemas = Schemas()
    schemas.components[ERROR] = _ERROR_SCHEMA
    paths: dict[str, Any] = {}
    tags: dict[str, None] = {}
    for each in table:
        paths.setdefault(path_of(each), {})[each.verb.lower()] = _operation(each, schemas)
        tags[each.tag] = None
    return {
        "openapi": "3.1.0",
        "info": {"title": "Staddle", "version": "v1", "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{SECURITY: []}],
        "tags": [{"name": name} for name in tags],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {
                SECURITY: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `staddle-server token create`.",
                }
            },
        },
    }


def path_of(operation: Operation) -> str:
    """Return the template of an operation's address as OpenAPI writes it."""
    return operation.path.replace("...}", "}")


def _operation(each: Operation, schemas: Schemas) -> dict[str, Any]:
    role = f"Role: {each.role.name.lower()}."
    described: dict[str, Any] = {
        "operationId": each.id or each.name,
        "tags": [each.tag],
        "summary": each.about,
        "description": f"{each.more} {role}".lstrip(),
        "parameters": [_parameter(parameter) for parameter in each.parameters],
        "responses": _responses(each, schemas),
    }
    if each.body is not None:
        described["requestBody"] = _body(each.body, schemas)
    return described


def _parameter(each: RestParameter) -> dict[str, Any]:
    schema = each.kind.schema
    described: dict[str, Any] = {
        "name": each.name,
        "in": each.where,
        "description": each.about,
        "schema": {"type": "array", "items": schema} if each.many else schema,
    }
    if each.where == PATH or each.required:
        described["required"] = True
    return described


def _body(body: Body, schemas: Schemas) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if body.message is not None:
        schema = schemas.without(_described(body.message), body.without, body.required)
    described: dict[str, Any] = {"schema": schema} if schema else {}
    if body.example:
        described["example"] = body.example
    return {"required": True, "content": dict.fromkeys(body.media_types, described)}


def _responses(each: Operation, schemas: Schemas) -> dict[str, Any]:
    responses = {str(answer.status): _answer(answer, schemas) for answer in each.answers}
    by_status: dict[int, list[str]] = {}
    for code in (*ERRORS, *each.errors):
        by_status.setdefault(STATUSES[code], []).append(code)
    for status, codes in sorted(by_status.items()):
        about = " or ".join(f"`{code}`" for code in dict.fromkeys(codes))
        responses[str(status)] = {"description": f"An error: {about}.", "content": _json_error()}
    return responses


def _answer(answer: Answer, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.about}
    if answer.headers:
        described["headers"] = {
            name: {"description": about, "schema": {"type": "string"}}
            for name, about in answer.headers.items()
        }
    if answer.message is not None:
        described["content"] = {JSON: {"schema": schemas.of(_described(answer.message))}}
    elif answer.media_type == JSON:
        described["content"] = _json_error()
    elif answer.media_type:
        described["content"] = {answer.media_type: {}}
    return described


def _described(message: type[Message]) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def _json_error() -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": PLACE + ERROR}}}
