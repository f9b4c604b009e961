"""A Restore stream of a server, checked, and named where it is wrong."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, cast

from staddle._errors import ProtocolError, named
from staddle._protocol.answers import check_picked
from staddle._protocol.convert import directories_above
from staddle._protocol.restore_reader import EntryEvent, Event, HeaderEvent, RowsEvent, read_restore
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._protocol.segments import Segments
    from staddle._transport.calls import Calls
    from staddle._transport.retry import Retry


def restored(
    calls: Calls,
    request: sv.RestoreRequest,
    *,
    retry: Retry | None = None,
    segments: Segments | None = None,
) -> Generator[Event]:
    """The events of what `request` asks for. Raises ProtocolError, which names the server, and what the call fails with.

    Close it to end the call.
    """
    paths = len(request.paths) + len(request.raw_paths)
    asked = frozenset([*(path.encode() for path in request.paths), *request.raw_paths])
    messages = cast("Generator[sv.RestoreResponse]", calls.stream("Restore", request, retry=retry))
    with closing(messages), named(calls.address):
        for event in read_restore(
            messages, view=request.view, segments=segments, columns=request.columns, paths=paths
        ):
            if isinstance(event, HeaderEvent):
                check_picked(request.dataset, request.backup, event.backup)
            elif isinstance(event, EntryEvent) and asked:
                _check_asked(event.path, asked, exact=request.exact)
            elif isinstance(event, RowsEvent) and asked:
                for row in event.rows:
                    _check_asked(row.path, asked, exact=request.exact)
            yield event


def _check_asked(path: bytes, asked: frozenset[bytes], *, exact: bool) -> None:
    """Raises ProtocolError for a path that was not requested: callers rely on getting only what they requested."""
    if path not in asked and (exact or asked.isdisjoint(directories_above(path))):
        raise ProtocolError(f"The restore has {path!r}, which was not requested.")
