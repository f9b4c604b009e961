"""Pages of lists: a list takes little memory, however large the rows are that callers have made."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from staddle_server.base.limits import LISTED_BYTES_MAX, MIB, TAG_KEY_BYTES_MAX, TAG_VALUE_BYTES_MAX, TAGS_MAX
from staddle_server.catalog import DurableUpdate

TAGS = {f"{n:0{TAG_KEY_BYTES_MAX}}": "v" * TAG_VALUE_BYTES_MAX for n in range(TAGS_MAX)}
TAGS_BYTES = TAGS_MAX * (TAG_KEY_BYTES_MAX + TAG_VALUE_BYTES_MAX)
COUNT = 120
LIMIT = 1000


def _backups(world) -> None:
    for _ in range(COUNT):
        world.backup(tags=TAGS)


def _datasets(world) -> None:
    for n in range(COUNT):
        world.begin(dataset=f"{n:03}-empty")
        world.backup(f"{n:03}-full", tags=TAGS)


def _uploads(world) -> None:
    for _ in range(COUNT // 10):
        world.checkpoint(world.begin().upload, durable=DurableUpdate(b"d" * MIB, 3, 2, 1))


LISTS: dict[str, tuple[Callable[[Any], None], Callable[[Any, Any], Any], Callable[[Any], Any]]] = {
    "backups of a dataset": (
        _backups,
        lambda world, last: world.catalog.backups.list_page(
            world.tenant, "www", limit=LIMIT, before_number=last and last.number
        ),
        lambda each: each.number,
    ),
    "backups of a tenant": (
        _backups,
        lambda world, last: world.catalog.verification.backups(
            world.tenant, after=last.id if last else b"", limit=LIMIT
        ),
        lambda each: each.number,
    ),
    "datasets": (
        _datasets,
        lambda world, last: world.catalog.datasets.list_page(world.tenant, last.name if last else "", LIMIT),
        lambda each: (each.name, each.newest_backup is not None),
    ),
    "open uploads": (
        _uploads,
        lambda world, last: world.catalog.uploads.list_open(
            world.tenant, "", last.id if last else b"", LIMIT
        ),
        lambda each: each.id,
    ),
}
"""For each list: what fills it, a page of it behind a value, and what tells its values apart."""


@pytest.mark.parametrize("name", LISTS)
def test_a_page_of_large_rows_is_short_and_the_pages_together_are_the_list(world, name):
    fill, page_behind, key = LISTS[name]
    fill(world)
    page_behind(world, None)
    tracemalloc.start()
    try:
        pages = [page_behind(world, None)]
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB, "the whole list takes more"
    finally:
        tracemalloc.stop()
    while pages[-1].more:
        pages.append(page_behind(world, pages[-1][-1]))
    assert all(pages)
    assert page_behind(world, pages[-1][-1]) == []
    assert max(map(len, pages)) <= max(1, 2 * LISTED_BYTES_MAX // TAGS_BYTES + 2)
    found = [key(each) for page in pages for each in page]
    assert len(set(found)) == len(found)
    assert len(found) == {"datasets": 2 * COUNT, "open uploads": COUNT // 10}.get(name, COUNT)
    if name == "datasets":
        assert all(full == full_name.endswith("-full") for full_name, full in found)


def test_a_page_of_small_rows_has_as_many_as_were_asked_for(world):
    made = [world.backup() for _ in range(70)][::-1]
    for limit, more in ((1, True), (32, True), (69, True), (70, False), (1000, False)):
        page = world.catalog.backups.list_page(world.tenant, "www", limit=limit)
        assert page == made[:limit]
        assert page.more == more


def test_the_state_of_a_retention_plan_has_only_the_tags_that_decide(world):
    _backups(world)
    key = next(iter(TAGS))
    tracemalloc.start()
    try:
        state = world.catalog.retention.state(world.tenant, "www", lambda _policy: [key, "another"])
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB, "all tags take more"
    finally:
        tracemalloc.stop()
    assert [backup.number for backup in state.backups] == list(range(COUNT, 0, -1))
    assert all(backup.tags == {key: TAGS[key]} for backup in state.backups)
