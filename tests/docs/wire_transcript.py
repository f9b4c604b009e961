"""Plays the JSON transcripts of docs/protocol.md as grpcurl would, and compares the answers with the shown ones."""

from __future__ import annotations

import json
import re
from typing import Any

import grpc
from doc_pages import ELLIPSIS, Block
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.v1 import service_pb2 as sv

SERVICE = sv.DESCRIPTOR.services_by_name["StaddleService"]
_ID = re.compile(r"[0-9a-f]{32}")


class Transcript:
    """One conversation. Ids and page tokens are other ones in each run: what is shown stands for what came."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._came: dict[str, str] = {}

    def play(self, request: Block, answer: Block) -> list[str]:
        """Send the request of a block; return in words how the answer differs from the next block."""
        method = request.words[1]
        came, kind = self.call(method, self._real(request.text))
        if answer.words[1] != kind:
            return [f"{method}: {kind} came, {came}, where {answer.words[1]} is shown"]
        shown = json_values(answer.text)
        if len(shown) != len(came):
            return [f"{method}: {len(came)} messages came where {len(shown)} are shown"]
        return [each for pair in zip(shown, came, strict=True) for each in self._differences(method, *pair)]

    def call(self, method: str, text: str) -> tuple[list[Any], str]:
        """The answers, or the error, as JSON values."""
        described = SERVICE.methods_by_name[method]
        type_ = getattr(sv, described.input_type.name)
        requests = [json_format.ParseDict(each, type_()) for each in json_values(text)]
        call = getattr(self._stub, method)
        try:
            answer = call(iter(requests) if described.client_streaming else requests[0])
            answers = list(answer) if described.server_streaming else [answer]
        except grpc.RpcError as error:
            return [error_value(error)], "error"
        return [
            json_format.MessageToDict(each, preserving_proto_field_name=True) for each in answers
        ], "answer"

    def _real(self, text: str) -> str:
        for shown, came in self._came.items():
            text = text.replace(shown, came)
        return text

    def _differences(self, where: str, shown: Any, came: Any) -> list[str]:
        """Everything shown must have come; the page may omit other fields."""
        if isinstance(shown, dict) and isinstance(came, dict):
            return [
                each
                for key in shown
                if key != ELLIPSIS
                for each in self._differences(f"{where}.{key}", shown[key], came.get(key, "nothing"))
            ]
        if isinstance(shown, list) and isinstance(came, list) and len(shown) == len(came):
            return [
                each
                for index, pair in enumerate(zip(shown, came, strict=True))
                for each in self._differences(f"{where}[{index}]", *pair)
            ]
        if shown in (ELLIPSIS, came) or self._stands_for(where, shown, came):
            return []
        return [f"{where}: {came!r} came where {shown!r} is shown"]

    def _stands_for(self, where: str, shown: Any, came: Any) -> bool:
        if not (isinstance(shown, str) and isinstance(came, str)):
            return False
        if where.endswith("page_token"):
            return self._came.setdefault(shown, came) == came
        pairs = list(zip(_ID.findall(shown), _ID.findall(came), strict=False))
        if pairs and _ID.sub("", shown) == _ID.sub("", came):
            return all(self._came.setdefault(one, other) == other for one, other in pairs)
        return ELLIPSIS in shown and bool(
            re.fullmatch(".*".join(map(re.escape, self._real(shown).split(ELLIPSIS))), came)
        )


def json_values(text: str) -> list[Any]:
    """JSON values, one after another."""
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def error_value(error: grpc.RpcError) -> dict[str, Any]:
    """An error as the page shows it: the code, and what its google.rpc.Status holds."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    value: dict[str, Any] = {"code": error.code().name, "message": status.message}
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            value |= {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}
        elif detail.Unpack(retry):
            value["retry_delay"] = json_format.MessageToDict(retry)["retryDelay"]
    return value
