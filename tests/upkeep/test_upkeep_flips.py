"""Every bit counts: whatever is flipped, cut, extended or swapped, no wrong data is returned and the damage is named."""

import random

import pytest
from extent import extent
from flips import Subject, build, flip_and_look, objects, regions, replace_and_look
from thin import back_up, noise

SAMPLE = extent(10, 60)


@pytest.fixture
def subject(running):
    return Subject(running, build(running))


def test_a_flipped_bit_anywhere_is_never_returned_and_always_named(subject):
    """A sample of the bits; flips.py as a program flips all of them."""
    seeded = random.Random(20_261_125)
    bytes_of = list(regions(subject))
    chosen = seeded.sample(bytes_of, SAMPLE)
    # And the beginning of every object, and the parts that locate the others.
    for path in {path for path, _ in bytes_of}:
        size = path.stat().st_size
        places = [0, 20, 60, size - 40, size - 10, size - 1]
        chosen += [(path, at) for at in extent(seeded.sample(places, 2), sorted({*places})) if 0 <= at < size]
    for path, at in chosen:
        flip_and_look(subject, path, at, seeded.randrange(8))


def test_truncated_or_extended_objects_are_named(subject):
    for path in objects(subject.running):
        data = path.read_bytes()
        lengths = (0, 1, 47, 48, 100, len(data) // 2, len(data) - 33, len(data) - 1)
        for length in extent(lengths[::3], lengths):
            replace_and_look(subject, path, data[:length])
        for more in (b"\0", noise(100), data):
            assert replace_and_look(subject, path, data + more), "what is whole still comes back"
    for kind in ("records", "keys"):
        path = objects(subject.running, kind)[0]
        data = path.read_bytes()
        for other in (b"", data[:-1], data + b"\0"):
            replace_and_look(subject, path, other)


def test_swapped_objects_are_named_even_across_tenants(subject):
    running, seeded = subject.running, random.Random(20_261_130)
    other = running.make_tenant("other")
    back_up(running.stub(tenant=other), "tree", {"text": b"another tenant's"})
    theirs = [path for path in objects(running) if other.hex() in path.parts]
    ours = [path for path in objects(running) if running.tenant.hex() in path.parts]
    for path in extent(seeded.sample(ours, len(ours) // 2), ours):
        for source in [*ours, *theirs]:
            if source != path:
                replace_and_look(subject, path, source.read_bytes())
    records = [path for path in objects(running, "records") if running.tenant.hex() in path.parts]
    replace_and_look(subject, records[0], records[1].read_bytes())
