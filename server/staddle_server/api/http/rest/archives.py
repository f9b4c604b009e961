"""Backups as archives over HTTP: GET …/archive, and PUT …/backups with a tar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf import json_format
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.api.archive_calls import ArchiveCalls, SentTar
from staddle_server.api.archives import MEDIA_TYPES
from staddle_server.api.convert import bad
from staddle_server.api.http.rest import kinds
from staddle_server.api.http.rest.files import disposition
from staddle_server.api.http.rest.operations import (
    Answer,
    Body,
    Operation,
    RestParameter,
    RestRequest,
    Streamed,
)
from staddle_server.base.limits import HTTP_TAR_SILENCE_S, ROOT_BYTES_MAX
from staddle_server.base.types import Kind, Scope, TokenRole
from staddle_server.catalog import UploadRequest
from staddle_server.restore.browse import Selector

ANY_TYPE: Final = "*/*"
COMPRESSIONS: Final = {"tar": "", "tar.gz": "gzip", "tar.zst": "zstd"}
"""By the name of the format."""
BODY_TYPES: Final = (
    "application/x-tar",
    "application/tar",
    "application/gzip",
    "application/zstd",
    "application/octet-stream",
)
KEY_CHARS_MAX: Final = 255
_KINDS: Final = {each.name.lower(): each for each in Kind}
_SCOPES: Final = {each.name.lower(): each for each in Scope}
_PATHS: Final = RestParameter(
    "path", kinds.PATH_BYTES, "What the archive has, with all below it; nothing: the whole backup.", many=True
)
_OUT: Final = RestParameter(
    "format", kinds.one_of(*MEDIA_TYPES), "The format; nothing: tar. A zip cannot hold all that a tar can."
)
_IN: Final = (
    RestParameter("format", kinds.one_of(*COMPRESSIONS), "The format of the body; nothing: tar."),
    RestParameter("kind", kinds.one_of(*_KINDS), "The kind of the backup; nothing: auto."),
    RestParameter(
        "scope",
        kinds.one_of(*_SCOPES),
        "`whole` (nothing says the same): the backup has what the tar has. `changes`: it has what its base has, "
        "with the tar's entries in place of those at their paths.",
    ),
    RestParameter(
        "remove",
        kinds.PATH_BYTES,
        "With `changes`: a path of the base that the backup does not have, with all below it. The tar may bring it "
        "anew.",
        many=True,
    ),
    RestParameter("tag", kinds.TAG, "A tag of the backup, as KEY or KEY=VALUE.", many=True),
    RestParameter("host", kinds.HOST, "The machine that the tar is from."),
    RestParameter("root", kinds.text(ROOT_BYTES_MAX, control=True), "The directory that the tar is of."),
    RestParameter("newRoot", kinds.FLAG, "The dataset's host and root may change."),
)


def archive_operations(
    calls: ArchiveCalls, backups: str, backup: str, dataset: RestParameter, read: RestParameter
) -> list[Operation]:
    """Return the rows of the table whose request or answer is an archive.

    `backups` and `backup` are the addresses of a dataset's backups and of one; `dataset` and `read` are the
    parameters in them.
    """
    return [
        Operation(
            "GET",
            f"{backup}/archive",
            "GetArchive",
            TokenRole.READER,
            "A backup, or a part of it, as an archive.",
            lambda asked: _get(calls, asked),
            (
                Answer(
                    200,
                    "The archive: application/x-tar, application/zstd or application/zip.",
                    media_type=ANY_TYPE,
                    headers={"Content-Disposition": "A name for the file."},
                ),
            ),
            (dataset, read, _PATHS, _OUT),
            errors=("not_found", "data_loss"),
            more="If something of it is damaged, the connection breaks off: what arrived is not complete, and its "
            "end is missing.",
            is_stream=True,
        ),
        Operation(
            "PUT",
            backups,
            "PutArchive",
            TokenRole.WRITER,
            "Make a backup of a tar, all or nothing.",
            lambda asked: _put(calls, asked),
            (Answer(201, "The backup.", sv.CommitUploadResponse),),
            (dataset, *_IN),
            Body(BODY_TYPES),
            errors=("not_found", "failed_precondition", "already_exists"),
            more="`tar c . | curl -T - …` sends one. `Content-Encoding` gzip or zstd is the same as the format tar.gz "
            "or tar.zst. A try that is repeated with the same `Idempotency-Key` gets the backup that an earlier one made, "
            "instead of making another.",
            is_stream=True,
        ),
    ]


# ---------------------------------------------------------------------- out


def _get(calls: ArchiveCalls, asked: RestRequest) -> Streamed:
    given = asked.given
    form = given.get("format", "tar")
    dataset = given["dataset"]
    backup, pieces = calls.archive(
        dataset, _selector(given["backup"]), given.get("path", ()), form, asked.call
    )
    if not asked.is_head:
        # What is damaged at its beginning is an error with a text, not a broken connection.
        pieces = _after(next(pieces), pieces)
    name = f"{dataset}-{backup.number}.{form}"
    return Streamed(
        200,
        {"content-type": MEDIA_TYPES[form], "content-disposition": disposition(name.encode())},
        pieces,
    )


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _selector(given: Mapping[str, str]) -> Selector:
    return convert.selector_of(json_format.ParseDict(dict(given), pb.BackupSelector()))


# ---------------------------------------------------------------------- in


def _put(calls: ArchiveCalls, asked: RestRequest) -> sv.CommitUploadResponse:
    given = asked.given
    scope = _SCOPES[given.get("scope", "whole")]
    removed = given.get("remove", ())
    if removed and scope is not Scope.CHANGES:
        raise bad("remove", "it needs scope=changes: otherwise the backup has only what the tar has")
    tags = given.get("tag", ())
    if len({each["key"] for each in tags}) < len(tags):
        raise bad("tag", "a key is given twice")
    asked.exchange.silence_s = HTTP_TAR_SILENCE_S
    upload = UploadRequest(
        dataset=convert.dataset_name(given["dataset"]),
        kind=_KINDS[given.get("kind", "auto")],
        scope=scope,
        tags=convert.tags_of({each["key"]: each.get("value", "") for each in tags}),
        host=given.get("host", ""),
        root=given.get("root", ""),
        new_root=given.get("newRoot", False),
    )
    return calls.take(SentTar(upload, removed, _compression(asked), asked.pieces, _key(asked)), asked.call)


def _key(asked: RestRequest) -> str:
    """Return what the client calls its request; "": nothing. It may be in quotation marks."""
    given = asked.request.headers.getlist("idempotency-key")
    if not given:
        return ""
    key = given[0].strip()
    key = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
    if len(given) > 1 or not key.isascii() or not key.isprintable() or not 1 <= len(key) <= KEY_CHARS_MAX:
        raise bad("Idempotency-Key", f"expected one, of 1 to {KEY_CHARS_MAX} printable ASCII characters")
    return key


def _compression(asked: RestRequest) -> str:
    form = asked.given.get("format", "tar")
    encoding = asked.request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return COMPRESSIONS[form]
    if encoding not in COMPRESSIONS.values():
        raise bad("Content-Encoding", f"{encoding[:80]!r} is not supported; send gzip, zstd or identity")
    if form != "tar":
        raise bad("format", f"{form} with Content-Encoding {encoding} is compressed twice: use one of them")
    return encoding
