"""Which backups a list has: the filter of a request."""

from __future__ import annotations

from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.base import limits
from staddle_server.catalog import BackupFilter


def backup_filter_of(m: sv.ListBackupsRequest) -> BackupFilter:
    """Convert what a caller wants to see of a dataset's backups."""
    if len(m.tags) > limits.TAGS_MAX:
        raise convert.bad("tags", f"the limit is {limits.TAGS_MAX} tags")
    for tag in m.tags:
        convert.words(tag.key, "tags.key", limits.TAG_KEY_BYTES_MAX, empty=False)
        convert.words(tag.value, "tags.value", limits.TAG_VALUE_BYTES_MAX)
    return BackupFilter(
        host=convert.words(m.host, "host", limits.HOST_BYTES_MAX),
        since_ns=convert.ns_of(m.since_time, "since_time") if m.HasField("since_time") else None,
        until_ns=convert.ns_of(m.until_time, "until_time") if m.HasField("until_time") else None,
        tags=tuple((tag.key, tag.value if tag.HasField("value") else None) for tag in m.tags),
        held=m.held_only,
    )
