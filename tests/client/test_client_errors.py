"""Every error of the protocol is an exception with its facts."""

import ast
import pathlib
import pickle

import grpc
import pytest
import staddle
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from staddle import DamageError, ServerError, StaddleError, UnavailableError
from staddle._transport.rpc_errors import BY_CODE, BY_REASON, from_rpc_error
from staddle.v1 import errors_pb2

PROTO = pathlib.Path(__file__).parents[2] / "protos/staddle/v1/errors.proto"


class FailedCall(grpc.RpcError, grpc.Call):
    """A failed call as gRPC raises it."""

    def __init__(self, code, details, status: status_pb2.Status | bytes | None = None) -> None:
        self._code, self._details = code, details
        value = status.SerializeToString() if isinstance(status, status_pb2.Status) else status
        self._trailing = () if value is None else (("grpc-status-details-bin", value),)

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing

    def initial_metadata(self):
        return ()

    def is_active(self):
        return False

    def time_remaining(self):
        return None

    def cancel(self):
        return None

    def add_callback(self, callback):
        return False


def failed(code: grpc.StatusCode, message: str, *details) -> FailedCall:
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return FailedCall(code, message, status)


def documented() -> list[tuple[str, str]]:
    """(reason, code) of every value in the .proto, from its comments."""
    found, code = [], ""
    for line in PROTO.read_text().splitlines():
        text = line.strip()
        if text.startswith("// ["):
            code = text.removeprefix("// [").split("]")[0].split(":")[0].split(",")[0].strip()
        elif text.startswith("ERROR_REASON_") and "UNSPECIFIED" not in text:
            found.append((text.split(" ")[0].removeprefix("ERROR_REASON_"), code))
    return found


def test_every_reason_of_the_protocol_has_its_exception() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - an enum wrapper, not a dict
    assert names == set(BY_REASON)
    assert names == {reason for reason, _ in documented()}


@pytest.mark.parametrize(("reason", "code"), documented())
def test_a_reason_and_its_status_code_agree_on_the_exception(reason: str, code: str) -> None:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="staddle", metadata={"upload": "ab"})
    error = from_rpc_error(failed(grpc.StatusCode[code], "What happened.", info))
    assert type(error) is BY_REASON[reason]
    assert (error.reason, error.message, str(error)) == (reason, "What happened.", "What happened.")
    assert error.facts == {"upload": "ab"}
    by_code = BY_CODE[grpc.StatusCode[code]]
    assert issubclass(BY_REASON[reason], by_code) or reason in {
        "UNFINISHED_STREAM",
        "DRAINING",
        "STORE_UNAVAILABLE",
    }


def test_every_status_code_but_ok_has_an_exception() -> None:
    assert set(BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_retry_info_is_read() -> None:
    info = error_details_pb2.ErrorInfo(reason="DRAINING", domain="staddle")
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000))
    error = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "Shutting down.", retry, info))
    assert error.retry_after_s == 2.5
    assert type(error) is UnavailableError


def test_an_unknown_reason_keeps_its_name_and_falls_back_to_the_code() -> None:
    info = error_details_pb2.ErrorInfo(reason="MOON_FULL", domain="staddle")
    error = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "Wait.", info))
    assert (type(error), error.reason) == (UnavailableError, "MOON_FULL")
    error = from_rpc_error(failed(grpc.StatusCode.NOT_FOUND, "No.", info))
    assert (type(error), error.reason) == (staddle.NotFoundError, "MOON_FULL")


def test_details_of_other_domains_are_ignored() -> None:
    info = error_details_pb2.ErrorInfo(reason="DATASET_NOT_FOUND", domain="example.com")
    error = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "proxy", info), address="backup:7443")
    assert isinstance(error, staddle.ConnectError)
    assert "backup:7443" in error.message


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", b"\x0a\x05ab"])
def test_unreadable_details_leave_the_code(garbage: bytes) -> None:
    error = from_rpc_error(FailedCall(grpc.StatusCode.PERMISSION_DENIED, "no", garbage))
    assert isinstance(error, staddle.AccessDeniedError)
    assert error.message == "no"


def test_an_unreadable_detail_does_not_affect_the_others() -> None:
    call = failed(
        grpc.StatusCode.NOT_FOUND,
        "No.",
        error_details_pb2.ErrorInfo(reason="PATH_NOT_FOUND", domain="staddle"),
    )
    status = status_pb2.Status.FromString(call.trailing_metadata()[0][1])
    broken = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    status.details.insert(0, broken)
    error = from_rpc_error(FailedCall(grpc.StatusCode.NOT_FOUND, "No.", status))
    assert isinstance(error, staddle.PathNotFoundError)


def test_an_error_without_a_call_is_converted() -> None:
    assert isinstance(from_rpc_error(grpc.RpcError("odd")), ServerError)


def test_errors_survive_pickling() -> None:
    error = DamageError("broken", facts={"path": "a"}, retry_after_s=1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.facts, again.retry_after_s, again.reason) == (
        DamageError,
        "broken",
        {"path": "a"},
        1.5,
        "DAMAGED",
    )


def test_the_tree_in_the_docstring_matches_the_classes() -> None:
    import staddle._errors as module

    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (module.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), "")
        if not name or not line.startswith("    "):
            continue
        depth = line.index(name)
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if stack:
            drawn[name] = stack[-1][1]
        stack.append((depth, name))
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, StaddleError) and value is not StaddleError
    }
    assert drawn == real


def test_every_exported_name_has_a_docstring_and_every_error_is_exported() -> None:
    import staddle._errors as module

    assert staddle.__all__ == sorted(staddle.__all__)
    for name in staddle.__all__:
        exported = getattr(staddle, name)
        assert exported.__doc__, name
        assert not exported.__doc__.startswith(f"{name}("), f"{name} has only what dataclass wrote"
    errors = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, StaddleError)
    }
    assert errors <= set(staddle.__all__)


def test_every_public_method_of_the_client_has_a_docstring() -> None:
    for owner in (staddle.Client, staddle.Upload):
        for name, value in vars(owner).items():
            if not name.startswith("_"):
                assert (getattr(value, "__doc__", None) or "").strip(), f"{owner.__name__}.{name}"


def test_the_examples_in_docstrings_are_valid_python() -> None:
    import textwrap

    for documented_by in (staddle, staddle.Client, staddle.Client.upload):
        lines = (documented_by.__doc__ or "").splitlines()
        indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
        margin = min(indents)
        example = "\n".join(
            line[margin:] for line in lines[1:] if line.startswith(" " * (margin + 4)) or not line.strip()
        )
        calls = [
            node.func.attr
            for node in ast.walk(ast.parse(textwrap.dedent(example)))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and getattr(node.func.value, "id", "") in {"client", "Client"}
        ]
        assert calls
        for name in calls:
            assert hasattr(staddle.Client, name)
