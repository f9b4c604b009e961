"""The health probe: asks a server, with gRPC's own health protocol, whether it serves."""

import time
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from staddle_server import tls
from staddle_server.config import Address, OperatorError

SERVING: Final = "SERVING"
METHOD: Final = "/grpc.health.v1.Health/Check"
RETRY_S: Final = 0.1


class ProbeError(OperatorError):
    """The server does not serve, or cannot be asked."""


def check(address: Address, files: tls.TlsFiles | None, timeout_s: float) -> str:
    """The status of the server at the address, such as "SERVING". Raises ProbeError if it does not answer in time."""
    target = str(address)
    if files is None:
        channel = grpc.insecure_channel(target)
    else:
        credentials, name = tls.probe_credentials(files)
        channel = grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", name)])
    with channel:
        ask = channel.unary_unary(
            METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = ask(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise ProbeError(
                f"no server answers at {target}: {error.code().name}, {error.details()}"
            ) from error
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def still(deadline_s: float) -> bool:
    """Whether there is time for another try; waits a little first."""
    if time.monotonic() + RETRY_S >= deadline_s:
        return False
    time.sleep(RETRY_S)
    return True
