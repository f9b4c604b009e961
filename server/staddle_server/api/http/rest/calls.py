"""Operations that are calls of the service: the request of the RPC, from parameters and body."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from staddle.v1 import service_pb2 as sv

from staddle_server.api.answering import Method
from staddle_server.api.http.connect import JSON
from staddle_server.api.http.json_messages import parse_json
from staddle_server.api.http.rest.operations import Answer, Body, Operation, RestParameter, RestRequest
from staddle_server.api.messages import SERVICE, reading_of
from staddle_server.base.errors import BadRequest


class Calls:
    """Makes operations of the service's methods."""

    def __init__(self, table: Mapping[str, Method]) -> None:
        self._table = table

    def operation(
        self,
        verb: str,
        path: str,
        name: str,
        about: str,
        parameters: tuple[RestParameter, ...] = (),
        *,
        without: tuple[str, ...] = (),
        otherwise: Mapping[str, Any] | None = None,
        required: tuple[str, ...] = (),
        example: Mapping[str, Any] | None = None,
        errors: tuple[str, ...] = (),
        more: str = "",
        id_: str = "",
    ) -> Operation:
        """Return the operation that calls the method `name`, in OpenAPI under the name `id_`.

        Its parameters are fields of the request. With an `example`, a body has the others, except those in
        `without`; `required` names those that it must have, and `otherwise` what the others are if it lacks them:
        then there must be a body, if only {}.
        """
        method, answer = self._table[name], _type_of(name, "output_type")
        request = _type_of(name, "input_type")
        elsewhere = (*(each.field or each.name for each in parameters), *without)
        body = None
        if example is not None:
            body = Body((JSON,), request, elsewhere, required, example)
        return Operation(
            verb,
            path,
            name,
            method.role,
            about,
            _handler(name, method, request, parameters, without, otherwise=otherwise or {}),
            (Answer(200, about, answer),),
            parameters,
            body,
            errors,
            more,
            id=id_,
        )


def _type_of(name: str, of: str) -> type[Message]:
    found: type[Message] = getattr(sv, getattr(SERVICE.methods_by_name[name], of).name)
    return found


def _handler(
    name: str,
    method: Method,
    type_: type[Message],
    parameters: tuple[RestParameter, ...],
    without: tuple[str, ...],
    *,
    otherwise: Mapping[str, Any],
) -> Callable[[RestRequest], Any]:
    # The limits of messages count for the encoded request, as for every caller.
    reading = reading_of(name)
    fields = {each.name: each.field or each.name for each in parameters}

    def handle(asked: RestRequest) -> Any:
        return method.handler(reading.decode(_request(asked, type_, fields, without, otherwise)), asked.call)

    return handle


def _request(
    asked: RestRequest,
    type_: type[Message],
    fields: Mapping[str, str],
    without: tuple[str, ...],
    otherwise: Mapping[str, Any],
) -> bytes:
    """Return the encoded request of a method."""
    message = type_()
    if asked.body or otherwise:  # what a body lacks changes something, so it must be there
        parse_json(asked.body, message)
        for field, _ in message.ListFields():
            if field.json_name in fields.values() or field.json_name in without:
                raise BadRequest(
                    "BAD_FIELD", f"{field.json_name}: the address says it, not the body", field=field.name
                )
    given = {field.json_name for field, _ in message.ListFields()}
    found = {field: value for field, value in otherwise.items() if field not in given}
    for name, value in asked.given.items():
        found.update(_as_field(fields[name], value))
    json_format.ParseDict(found, message)  # each value has been checked
    return message.SerializeToString()


def _as_field(field: str, value: Any) -> dict[str, Any]:
    """Return a value as a field in JSON. Bytes are a path, which has another field if it is not UTF-8."""
    if not isinstance(value, bytes):
        return {field: value}
    try:
        return {field: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"raw{field[0].upper()}{field[1:]}": base64.b64encode(value).decode()}
