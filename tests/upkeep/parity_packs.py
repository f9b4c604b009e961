"""The packs of a server, their damage and their parity, for tests."""

from dataclasses import dataclass
from pathlib import Path

from sql import sql
from staddle_server.store.pack import pack_name
from staddle_server.store.parity import parity_name
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.parity import forget_lost, make_all, repair_pack
from thin import noise

NOW_NS = 1_900_000_000 * 10**9


@dataclass
class Packs:
    """The packs of a running service, in the order in which they were begun."""

    running: object

    def __post_init__(self):
        self.catalog = self.running.catalog
        self.tenants = Tenants(self.running.blobs, self.catalog, self.running.keys)
        self.tenant = self.tenants.get(self.running.tenant)

    def all(self):
        rows = self.catalog.packs.without_parity(0, 1000) + self.catalog.packs.with_parity(0, 1000)
        return [each.pack for each in sorted(rows)]

    def having_parity(self):
        return [each.pack for each in self.catalog.packs.with_parity(0, 1000)]

    def path(self, pack, name=pack_name):
        return self.running.root / "store" / name(self.running.tenant, pack)

    def parity_path(self, pack):
        return self.path(pack, parity_name)

    def make(self, percent=10):
        return make_all(self.tenants, self.catalog, percent)

    def forget_lost(self, **how):
        return forget_lost(self.tenants, self.catalog, self.running.blobs, **how)

    def repair(self, pack):
        return repair_pack(self.tenant, self.catalog, pack, NOW_NS)

    def verified_ns(self, pack):
        query = "SELECT verified_ns FROM packs WHERE id = ?"
        with self.catalog.database.read() as connection:
            return sql(connection, query, (pack,)).scalar_one()

    def damaged_at(self, pack):
        query = "SELECT segment_offset FROM pack_damage d JOIN packs p ON d.pack = p.row WHERE p.id = ?"
        with self.catalog.database.read() as connection:
            return set(sql(connection, query, (pack,)).scalars())

    def set_state(self, pack, state):
        with self.catalog.database.write() as connection:
            sql(connection, "UPDATE packs SET state = ? WHERE id = ?", (state, pack))


def damage(path: Path, at: int, length: int = 1):
    data = bytearray(path.read_bytes())
    data[at : at + length] = bytes(byte ^ 0xFF for byte in data[at : at + length])
    path.write_bytes(data)


FILES = {"a": noise(3_000_000, 1), "b": noise(200, 2)}
