"""Page tokens, an upload's durable point, settings, and messages on their way to values."""

from __future__ import annotations

import base64
import datetime
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_engine import Check, Target, documented, mutate_bytes, mutate_msgpack, mutate_text
from fuzz_manifest import TINY, Pages, content, entries, refs
from google.protobuf.message import DecodeError
from staddle._base.given_files import GivenError
from staddle._base.pem_files import read_pem
from staddle._errors import ConfigError
from staddle._transport.settings import load_settings
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import convert
from staddle_server.api.grpc.uploads import ListPosition
from staddle_server.api.page_tokens import PageTokens
from staddle_server.app import pem
from staddle_server.app.settings import OPTIONS, SettingsError
from staddle_server.app.settings_reading import load
from staddle_server.base.errors import BadRequest, Damaged, Fault
from staddle_server.base.types import Entry, Profile, Root
from staddle_server.manifest.content import ContentBuilder
from staddle_server.upload.progress import OpenEntry, Progress, Run, decode_progress, encode_progress

# ---------------------------------------------------------------------- page tokens

TOKENS = PageTokens(bytes(range(32)))
POSITIONS: list[tuple[type, object]] = [
    (str, "dataset"),
    (int, 7),
    (ListPosition, ListPosition(b"x" * 32, (b"a/b",))),
    (tuple[str, bytes], ("0123abcd" * 4, b"a/b")),
    (tuple[str, str, bytes], ("0123abcd" * 4, "0123abcd" * 4, b"\xff/b")),
]  # type: ignore[list-item] # what tokens.read takes


@contextmanager
def _tokens() -> Iterator[Check]:
    made = {TOKENS.make(("q", at), position): position for at, (_, position) in enumerate(POSITIONS)}

    def check(data: bytes) -> str:
        at, text = (data[:1] or b"\0")[0] % len(POSITIONS), data[1:].decode("latin-1")
        type_, position = POSITIONS[at]
        try:
            found = TOKENS.read(("q", at), text, type_)
        except BadRequest as error:
            documented(error, "BAD_PAGE_TOKEN")
        else:
            assert (
                found
                == position
                == next(v for k, v in made.items() if k.rstrip("=") == text.rstrip("=")[: len(k)])
            )
            return "the token that was given"
        # And with a right tag: of another query, of another type, of another version.
        forged = base64.urlsafe_b64encode(TOKENS._tag(("q", at), data[1:]) + data[1:]).decode().rstrip("=")
        try:
            found = TOKENS.read(("q", at), forged, type_)
        except BadRequest as error:
            return f"{error.reason} {type(error.__cause__).__name__} {error.__cause__}"
        assert TOKENS.read(("q", at), TOKENS.make(("q", at), found), type_) == found
        return f"a position {at}"

    yield check


def _token_seeds() -> list[bytes]:
    seeds = []
    for at, (_, position) in enumerate(POSITIONS):
        seeds.append(bytes([at]) + TOKENS.make(("q", at), position).encode())
        seeds.append(bytes([at]) + msgspec.msgpack.encode(position))
    return seeds


def _mutate_token(chance: random.Random, data: bytes) -> bytes:
    return data[:1] + mutate_msgpack(chance, data[1:])


# ---------------------------------------------------------------------- progress


def _progress_seeds() -> list[bytes]:
    pages = Pages()
    builder = ContentBuilder(pages, Profile.FIXED, TINY)
    for ref in refs(30):
        builder.add(ref)
    some = entries(pages)
    opened = OpenEntry(some[3], builder.state(), builder.size)
    runs = (Run(1, Root(0, bytes(32), 5, 5)), Run(0, Root(1, bytes(32), 500, 5)))
    return [
        encode_progress(Progress()),
        encode_progress(Progress(7, 6, 5, b"a/b", 4, runs, None, 3)),
        encode_progress(Progress(7, 6, 5, b"a/b", 4, runs, opened, 3)),
    ]


@contextmanager
def _progress() -> Iterator[Check]:
    pages = Pages()
    content(pages, 30)
    builder = ContentBuilder(pages, Profile.FIXED, TINY)
    for ref in refs(30):
        builder.add(ref)

    def check(data: bytes) -> str:
        try:
            progress = decode_progress(data)
        except Fault as error:
            return error.message
        assert decode_progress(encode_progress(progress)) == progress
        opened = progress.open_entry
        if opened is None:
            return "progress"
        try:
            again = ContentBuilder.restore(opened.content, pages, pages, TINY)
        except (Damaged, BadRequest) as error:
            return f"progress; {error.message}"
        assert again.size == opened.content.size
        return "progress with an open file"

    yield check


# ---------------------------------------------------------------------- settings

_SERVER_WORDS = [
    *(f"{option.key} = " for option in OPTIONS),
    "true", "1e309", "nan", "-1", "9" * 5000, "[" * 2000, "{a=" * 500, '"\\u0000"', '"~nobody-here/x"', "2026-01-01",
    '"127.0.0.1:0"', '"[::1]:1"', '"0.0.0.0:65536"', '"1d"', '"99999999999d"', "'''", "[a.b]", "\ufeff", "# ", '"é"', "[[x]]", "0x7f",
]  # fmt: skip
_SERVER_FILE = b"""data = "data"
listen = "127.0.0.1:0"
endpoint = "backup.example.org:7443"
streams_max = 8
lease = "5m"
upload_life = "7d"
drain = 20
log_format = "json"
log_level = "info"
"""


@contextmanager
def _server_config() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "server.toml"

        def check(data: bytes) -> str:
            """The input is the file; its first lines are also taken for flags and variables."""
            path.write_bytes(data)
            said = [_settings({}, {"STADDLED_DATA": tmp}, str(path))]
            texts = data.decode("utf-8", "replace").replace("\0", "").split("\n")
            for option, text in zip(OPTIONS, texts, strict=False):
                value = text.partition(" = ")[2].strip('"') or text
                said.append(_settings({"data": tmp, option.field: value}, {}, None))
                said.append(_settings({"data": tmp}, {option.variable: value}, None))
            return "; ".join(dict.fromkeys(said))

        yield check


def _settings(flags: dict[str, str | None], environment: dict[str, str], config: str | None) -> str:
    try:
        settings = load(flags, environment, config)
    except SettingsError as error:
        return str(error).rpartition(": ")[2]
    assert 1 <= settings.streams_max <= 1024
    assert 10 <= settings.lease_s <= 86_400
    assert settings.data.is_absolute()
    assert settings.listen.is_loopback or settings.tls_cert is not None
    return "settings"


_CLIENT_FILE = b"""server = "127.0.0.1:7443"
token = "staddle_abc"
ca = "ca.crt"
cert = "~/client.crt"
key = "/etc/client.key"
server_name = "backup"
"""
_CLIENT_WORDS = [*_SERVER_WORDS, "server = ", "token = ", "ca = ", "server_name = "]


@contextmanager
def _client_config() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "client.toml"
        path.touch(0o600)

        def check(data: bytes) -> str:
            path.write_bytes(data)
            try:
                settings = load_settings(path, environment={})
            except ConfigError as error:
                return error.message.replace(tmp, "")
            assert settings.server
            assert settings.token
            assert settings.token not in repr(settings)
            return "settings"

        yield check


_PEM_WORDS = [
    "-----BEGIN ",
    "-----END ",
    "-----",
    "CERTIFICATE",
    "PRIVATE KEY",
    "ENCRYPTED",
    "Proc-Type: 4,",
    "\\n",
    "\r\n",
    "=",
]


@contextmanager
def _pem() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "given.pem"
        path.touch(0o600)

        def tried(read: Callable[[], object]) -> str:
            try:
                read()
            except (pem.TlsError, GivenError) as error:
                return str(error).replace(tmp, "")
            return "read"

        def check(data: bytes) -> str:
            path.write_bytes(data)
            return " ".join(
                (
                    tried(lambda: pem.certificates_in(pem.read(path))),
                    tried(lambda: pem.keys_in(pem.read(path))),
                    tried(lambda: read_pem(path).certificates()),
                    tried(lambda: read_pem(path).private_keys()),
                )
            )

        yield check


def _pem_seeds() -> list[bytes]:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # which signs the same way every time
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    begins = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(begins).not_valid_after(begins.replace(year=2027))
    certificate = builder.sign(private, None).public_bytes(serialization.Encoding.PEM)
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = private.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
    return [
        certificate,
        key,
        key + certificate,
        certificate.replace(b"\n", b" "),
        key.decode().encode("utf-16"),
    ]


# ---------------------------------------------------------------------- messages to values

MESSAGES: list[tuple[type, object]] = [
    (pb.Entry, pb.Entry(path="a/b", mode=0o644, uid=1, mtime_ns=-5, data=b"x", owner="root", device_major=1)),
    (pb.Entry, pb.Entry(raw_path=b"\xff", content=pb.Content(size_bytes=9, content_id=bytes(32), chunks=[pb.ChunkRef(digest=bytes(32), length_bytes=9)]))),
    (pb.Entry, pb.Entry(path="l", type=pb.ENTRY_TYPE_SYMLINK, link_target="..", xattrs=[pb.Xattr(name="user.a", value=b"1")], holes=[pb.Hole(offset_bytes=1, length_bytes=2)])),
    (sv.EntryChange, sv.EntryChange(remove=pb.Remove(path="a"))),
    (sv.EntryChange, sv.EntryChange(entry=pb.Entry(path="a", content_from_base=True), more=True)),
    (sv.BeginUploadRequest, sv.BeginUploadRequest(dataset="d", request_id="r", tags={"a": "b"}, host="h", root="/r", fingerprint="f")),
    (pb.BackupSelector, pb.BackupSelector(backup="latest")),
    (pb.BackupSelector, pb.BackupSelector(at={"seconds": 5, "nanos": 7})),
    (pb.BackupSelector, pb.BackupSelector(ago={"seconds": 5})),
    (sv.ReadRangeRequest, sv.ReadRangeRequest(dataset="d", path="a", offset_bytes=2**63, length_bytes=2**32 - 1)),
]  # fmt: skip


def _convert(message: object) -> object:
    if isinstance(message, pb.Entry):
        sent = convert.sent_of(message)
        assert isinstance(sent.entry, Entry)
        return sent
    if isinstance(message, sv.EntryChange):
        return convert.change_of(message)
    if isinstance(message, sv.BeginUploadRequest):
        return convert.begin_of(message)
    if isinstance(message, pb.BackupSelector):
        return convert.selector_of(message)
    assert isinstance(message, sv.ReadRangeRequest)
    return convert.path_of(message)


@contextmanager
def _messages() -> Iterator[Check]:
    def check(data: bytes) -> str:
        which = (data[:1] or b"\0")[0] % len(MESSAGES)
        try:
            message = MESSAGES[which][0].FromString(data[1:])  # type: ignore[attr-defined]
        except DecodeError:
            return "no message"
        try:
            value = _convert(message)
        except BadRequest as error:
            return documented(error, "BAD_FIELD")
        return f"a {type(value).__name__} {which}"

    yield check


def _message_seeds() -> list[bytes]:
    return [bytes([at]) + message.SerializeToString() for at, (_, message) in enumerate(MESSAGES)]  # type: ignore[attr-defined]


TARGETS = [
    Target("token", _tokens, _token_seeds, _mutate_token, short_runs=2000),
    Target("progress", _progress, _progress_seeds, mutate_msgpack, short_runs=2000),
    Target(
        "server-config", _server_config, lambda: [_SERVER_FILE],
        lambda chance, data: mutate_text(chance, data, _SERVER_WORDS), short_runs=100,
    ),
    Target(
        "client-config", _client_config, lambda: [_CLIENT_FILE],
        lambda chance, data: mutate_text(chance, data, _CLIENT_WORDS), short_runs=200,
    ),
    Target(
        "pem", _pem, _pem_seeds,
        lambda chance, data: mutate_text(chance, data, _PEM_WORDS), short_runs=200,
    ),
    Target("message", _messages, _message_seeds, mutate_bytes, short_runs=4000),
]  # fmt: skip
