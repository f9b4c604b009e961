"""Shared by the tests of damage: checks and repairs of a running service, and ways to damage its store."""

from __future__ import annotations

from pathlib import Path
from random import Random

from staddle_server.base.types import Role, SegmentRef
from staddle_server.store.keys import chunk_id, secrets_of
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.check import Check, CheckPlan, Summary
from staddle_server.upkeep.integrity.findings import Finding, Kept
from staddle_server.upkeep.integrity.repair import Repair, Repaired


def kept(running) -> Kept:
    """The state to maintain, opened again as another process would."""
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    return Kept(running.catalog, running.blobs, running.keys, tenants, running.clock)


def check(running, *, read: bool = False, share: float = 1.0, seed: int = 1) -> tuple[list[Finding], Summary]:
    """One check of all tenants."""
    found: list[Finding] = []
    plan = CheckPlan(read=read, share=share, random=Random(seed))
    rows = running.catalog.tenants.list_all()
    return found, Check(kept(running), plan, found.append).run(rows, all_tenants=True)


def repair(running, *, dry_run: bool = False) -> tuple[list[Finding], Repaired]:
    """One repair of all tenants."""
    found: list[Finding] = []
    done = Repair(kept(running), found.append, dry_run=dry_run).run(running.catalog.tenants.list_all())
    return found, done


def damage(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.severity == "damage"]


def paths(found: list[Finding]) -> set[tuple[str, str]]:
    """The backups and paths that are reported as damaged."""
    return {(each.backup, each.path) for each in found if each.kind == "path"}


def objects(running, kind: str = "packs") -> list[Path]:
    """The stored objects of a kind, by name."""
    return sorted(path for path in (running.root / "store" / kind).rglob("*") if path.is_file())


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flips one bit; `at` may be negative, from the end."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def places(running, role: Role, digest: bytes) -> list[tuple[Path, SegmentRef]]:
    """The files and segments that a chunk lies in."""
    name = chunk_id(secrets_of(running.keys.load(running.tenant)).id_key, role, digest)
    found = running.catalog.chunks.find(running.tenant, [name], include_damaged=True).get(name, [])
    return [(pack_file(running, place.segment.pack), place.segment) for place in found]


def pack_file(running, pack: bytes) -> Path:
    return running.root / "store" / "packs" / running.tenant.hex() / pack.hex()[:2] / pack.hex()


def damage_chunk(running, role: Role, digest: bytes) -> tuple[Path, SegmentRef]:
    """Flips a bit in the segment of the first copy of a chunk."""
    path, segment = places(running, role, digest)[0]
    flip(path, segment.offset + segment.length - 20)
    return path, segment
