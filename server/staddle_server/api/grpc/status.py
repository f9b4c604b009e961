"""Errors over gRPC: a status with details."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import grpc
from grpc_status import rpc_status

from staddle_server.api.call_line import free_frames
from staddle_server.api.status import status_of
from staddle_server.base.call_ids import CALL_KEY
from staddle_server.base.errors import StaddleError


def abort_with(context: grpc.ServicerContext, error: StaddleError, call: str = "") -> NoReturn:
    """End a call, by its id, with the status of an error."""
    status = rpc_status.to_status(status_of(error))
    if call:
        status = cast("Any", status)._replace(trailing_metadata=(*status.trailing_metadata, (CALL_KEY, call)))
    free_frames(error)
    context.abort_with_status(status)
    raise AssertionError("abort_with_status raises")
