"""Calls about retention policies, for tests."""

from __future__ import annotations

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from staddle_server.tenancy.tenant import Tenants
from thin import back_up

DAY = 86_400


def set_policy(stub, dataset="www", **rules):
    request = sv.SetRetentionRequest(dataset=dataset, policy=pb.RetentionPolicy(**rules))
    return stub.SetRetention(request).retention


def plan(stub, dataset="www", **more):
    return stub.PlanRetention(sv.PlanRetentionRequest(dataset=dataset, **more))


def ids(found):
    return [each.id for each in found]


def several(running, stub, count=5, dataset="www", **fields):
    """Backups a day apart, the oldest first."""
    made = []
    for number in range(count):
        made.append(back_up(stub, dataset, {"a": b"%d" % number}, **fields))
        running.clock.ahead_s += DAY
    return made


def hold(stub, dataset, backup=None):
    stub.SetHold(sv.SetHoldRequest(dataset=dataset, backup=backup.id if backup else "", reason="x"))


def apply(stub, token, dataset="www"):
    return stub.ApplyRetention(sv.ApplyRetentionRequest(dataset=dataset, plan_token=token))


def delete(stub, backup, dataset="www"):
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=backup.id))


def tenant_of(running):
    return Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)


# --- only complete backups count


def damage_chunk(running, digest, role=Role.DATA):
    """Flip a bit of the segment with a chunk, and have the server notice it."""
    tenant = tenant_of(running)
    chunk_id = tenant.chunk_id(role, digest)
    (place,) = running.catalog.chunks.find(running.tenant, [chunk_id])[chunk_id]
    (path,) = (running.root / "store" / "packs").rglob(place.segment.pack.hex())
    data = bytearray(path.read_bytes())
    data[place.segment.offset + place.segment.length - 20] ^= 1
    path.write_bytes(data)
