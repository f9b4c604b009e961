"""Error messages for people name the object and what to do, without calls, fields or codes of the protocol."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

import grpc
import pytest
from staddle import BadRequestError, StaddleError
from staddle._transport import rpc_errors
from staddle._transport.advice import WORDS, speaks_of_the_protocol, words_of
from staddle.v1 import errors_pb2

SERVER = Path(__file__).parents[2] / "server" / "staddle_server"
REASONS = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118  not a dict
CHECKED_AS_IT_COMES = {"BAD_FIELD"}


@functools.cache
def said_by_the_server() -> dict[str, set[str]]:
    """By reason, the messages in the server's code, with X for each value."""
    found = defaultdict(set)
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[0], ast.Constant):
                reason, message = node.args[0].value, _template(node.args[1])
                if reason in REASONS and message is not None:
                    found[reason].add(message)
    return found


def _template(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return None


def test_the_servers_messages_are_found() -> None:
    said = said_by_the_server()
    assert len(said) > 20
    assert any("shutting down" in message for message in said["DRAINING"])


@pytest.mark.parametrize("reason", sorted(REASONS - CHECKED_AS_IT_COMES))
def test_no_message_for_people_shows_calls_fields_or_codes(reason: str) -> None:
    error = rpc_errors.BY_REASON[reason]("PutEntries: upload_id is RESOURCE_EXHAUSTED", reason=reason)
    shown = {words_of(error)} if reason in WORDS else said_by_the_server()[reason]
    assert [message for message in shown if speaks_of_the_protocol(message)] == []
    assert error.reason == reason
    assert "PutEntries" in error.message


@pytest.mark.parametrize(
    ("field", "message", "expected"),
    [
        ("until_time", "until_time: it is too far away", "--until: it is too far away"),
        ("policy", "policy: unknown time zone 'a_b'", "the policy: unknown time zone 'a_b'"),
        ("path", "'my_file': the path has over 1024 components", "'my_file': the path has over 1024 components"),
        ("upload_id", "upload_id: an id has 32 digits", None),
        ("data", "data: data and zero_bytes exclude each other", None),
    ],
)  # fmt: skip
def test_a_field_has_the_name_that_the_command_uses(field: str, message: str, expected: str | None) -> None:
    refused = BadRequestError(message, facts={"field": field})
    assert words_of(refused) == message, "refusals of this library are written for people"
    refused.__cause__ = grpc.RpcError()
    shown = words_of(refused)
    assert shown == expected if expected else "Update both" in shown


def test_missing_facts_do_not_hide_the_error() -> None:
    assert "role" in words_of(StaddleError("", reason="PERMISSION_DENIED"))
    assert "Another server" in words_of(StaddleError("", reason="WRONG_SERVER"))
