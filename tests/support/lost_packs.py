"""Packs that are lost, or damaged, while a server runs."""

from staddle_server.store.keys import chunk_id, secrets_of


def packs(running):
    return sorted(path for path in (running.root / "store" / "packs").rglob("*") if path.is_file())


def lose_packs(running):
    for path in packs(running):
        path.unlink()


def mark(running, role, digest):
    """Damage the segment with a chunk, and mark it as a reader that finds the damage does."""
    name = chunk_id(secrets_of(running.keys.load(running.tenant)).id_key, role, digest)
    places = running.catalog.chunks.find(running.tenant, [name]).get(name, [])
    if not places:
        return  # the segment is damaged already
    (place,) = places
    (path,) = (path for path in packs(running) if path.name == place.segment.pack.hex())
    data = bytearray(path.read_bytes())
    data[place.segment.offset + place.segment.length - 20] ^= 1
    path.write_bytes(data)
    running.catalog.packs.mark_damaged(running.tenant, place.segment.pack, place.segment.offset)
