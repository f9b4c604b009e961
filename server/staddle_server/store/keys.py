"""The master key, tenants' stored secrets, and what is derived from them (docs/format.md, "Tenant
secrets").
"""

import codecs
import contextlib
import hmac
import os
import stat
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Final, NamedTuple, Self

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from staddle_server.base.errors import Damaged, Fault
from staddle_server.base.limits import DATASET_BYTES_MAX, MIB
from staddle_server.base.types import Count, Role, TenantKeys
from staddle_server.store.blobs import Blobs, Buffer
from staddle_server.store.copies import Copies
from staddle_server.store.files import Files, sync_directory, write_synced

KEY_BYTES: Final = 32
ID_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
KEYS_BYTES_MAX: Final = 1 * MIB
"""Limit of a keys object: room for more than 20,000 pack keys."""

MASTER_KEY_TEMPORARY: Final = ".new"
"""Suffix of a master key file until it is complete."""

_MASTER_PREFIX: Final = "staddle-master-key-1 "
_CHECK_CHARS: Final = 8
_MASTER_FILE_BYTES_MAX: Final = 4096
"""Room for the line, however it is wrapped, indented or encoded."""
_KEYS_HEAD: Final = struct.Struct("<8sHH16s12s")
_KEYS_MAGIC: Final = b"STADKEYS"
_VERSION: Final = 1

Random = Callable[[int], bytes]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
KeyVersion = Annotated[int, msgspec.Meta(ge=1, le=99_999_999)]
TenantName = Annotated[str, msgspec.Meta(min_length=1, max_length=DATASET_BYTES_MAX)]


class MasterKeyError(Fault):
    """The master key file is unusable; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__("INTERNAL", message)


class WrongMasterKey(Damaged):
    """A keys object does not open: it was made with another master key, or it is damaged."""


# --- derivations


def derive(context: str, material: Buffer) -> bytes:
    """Derive 32 bytes with BLAKE3's key derivation mode."""
    return blake3(material, derive_key_context=context).digest()


class Secrets(msgspec.Struct, frozen=True):
    """What is derived from a tenant's root. It never changes."""

    id_key: bytes
    page_key: bytes
    record_key: bytes
    token_key: bytes
    parity_key: bytes
    chunker_seed: int

    def __repr__(self) -> str:
        return "Secrets(…)"


def secrets_of(keys: TenantKeys) -> Secrets:
    """Return the secrets derived from `keys.root`. Cheap: they are cached."""
    return _secrets_of(keys.root)


@lru_cache(maxsize=1024)
def _secrets_of(root: bytes) -> Secrets:
    seed = int.from_bytes(derive("staddle.v1 chunker seed", root)[:8], "little")
    return Secrets(
        id_key=derive("staddle.v1 chunk id key", root),
        page_key=derive("staddle.v1 manifest page key", root),
        record_key=derive("staddle.v1 record key", root),
        token_key=derive("staddle.v1 page token key", root),
        parity_key=derive("staddle.v1 parity key", root),
        chunker_seed=seed % (2**63 - 1) + 1,
    )


def chunk_id(id_key: bytes, role: Role, digest: bytes) -> bytes:
    """Return a chunk's stored name, derived from its digest."""
    return blake3(bytes((role,)) + digest, key=id_key).digest()


# --- the master key


def create_master_key(path: str, random: Random = os.urandom, files: Files | None = None) -> bytes:
    """Create a master key in `path` (mode 0600), durable on return. Raises as `save_master_key` does."""
    master = random(KEY_BYTES)
    save_master_key(path, master, files)
    return master


def save_master_key(path: str, master: bytes, files: Files | None = None) -> None:
    """Write a master key to the new file `path` (mode 0600), durable on return.

    Raises MasterKeyError if the file exists or cannot be written.
    """
    files = files or Files()
    temporary = path + MASTER_KEY_TEMPORARY
    try:
        clear_master_key_temporary(path, files)
        write_synced(files, temporary, master_key_line(master).encode())
        try:
            files.link(temporary, path)
        finally:
            files.unlink(temporary)
        sync_directory(files, os.path.dirname(path) or ".")
    except FileExistsError as error:
        raise MasterKeyError(f"{path} exists already; a master key is never overwritten") from error
    except OSError as error:
        raise MasterKeyError(f"the master key {path} could not be written: {error.strerror}") from error


def clear_master_key_temporary(path: str, files: Files | None = None) -> None:
    """Remove what a crash during the creation of the master key `path` left beside it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        (files or Files()).unlink(path + MASTER_KEY_TEMPORARY)


def load_master_key(path: str) -> bytes:
    """Return the 32 bytes of the master key in `path`. Raises MasterKeyError with the reason."""
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MasterKeyError(f"the master key {path} could not be read: it is not a regular file")
            data = file.read(_MASTER_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise MasterKeyError(f"the master key file {path} does not exist") from error
    except IsADirectoryError as error:
        raise MasterKeyError(f"the master key {path} could not be read: it is a directory") from error
    except OSError as error:
        raise MasterKeyError(f"the master key {path} could not be read: {error.strerror}") from error
    return parse_master_key(data, path)


def master_key_line(master: bytes) -> str:
    """Return the line that a master key file holds."""
    return f"{_MASTER_PREFIX}{master.hex()} {_checksum(master)}\n"


def parse_master_key(data: bytes, where: str) -> bytes:
    """Return the master key from a file's bytes, also if typed or pasted: in capitals, wrapped, quoted, with
    a byte order mark.

    The check digits verify it. Raises MasterKeyError, which names `where` and never repeats the input.
    """
    if not data.strip(b"\0 \t\r\n"):
        raise MasterKeyError(f"{where} is empty: restore the master key from its copy")
    if len(data) > _MASTER_FILE_BYTES_MAX:
        raise MasterKeyError(f"{where} is not a master key: it has more than {_MASTER_FILE_BYTES_MAX} bytes")
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = "".join(data.decode(encoding, errors="replace").translate(_IGNORED).split()).casefold()
    prefix = _MASTER_PREFIX.strip()
    if not text.startswith(prefix):
        raise MasterKeyError(f"{where} is not a master key: expected one line that begins with {prefix!r}")
    # Letters that a typed copy has in place of digits; the check digits verify the guess.
    rest = text.removeprefix(prefix).translate(str.maketrans("oil", "011"))
    if not set(rest) <= set("0123456789abcdef"):
        raise MasterKeyError(
            f"the master key in {where} has characters that are not hexadecimal digits (0 to 9, a to f)"
        )
    if len(rest) != 2 * KEY_BYTES + _CHECK_CHARS:
        raise MasterKeyError(
            f"the master key in {where} needs {2 * KEY_BYTES} hexadecimal digits and {_CHECK_CHARS} check digits, and has "
            f"{len(rest)} in total"
        )
    master = bytes.fromhex(rest[: 2 * KEY_BYTES])
    if rest[2 * KEY_BYTES :] != _checksum(master):
        raise MasterKeyError(f"the master key in {where} has a typing error: its check digits do not match")
    return master


_IGNORED: Final = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u2060\"'"))
"""What editors, chats and shells put around and into a pasted line."""


def _checksum(master: bytes) -> str:
    return blake3(master).hexdigest()[:_CHECK_CHARS]


# --- tenants' secrets as stored


class StoredTenant(NamedTuple):
    """A tenant in the store."""

    tenant: bytes
    name: str
    created_ns: int


class WrappedKeys(msgspec.Struct, frozen=True):
    """The sealed part of a keys object."""

    tenant: Id
    name: TenantName
    created_ns: Count
    root: Key
    pack_keys: Annotated[dict[KeyVersion, Key], msgspec.Meta(min_length=1)]

    def __repr__(self) -> str:
        return f"WrappedKeys(tenant={self.tenant.hex()}, name={self.name!r}, …)"


_DECODER: Final = msgspec.msgpack.Decoder(WrappedKeys)


def keys_name(tenant: bytes, version: int) -> str:
    """Return the name of the keys object whose newest pack key is `version`."""
    return f"keys/{tenant.hex()}/{version:08}"


def wrap_keys(master: bytes, wrapped: WrappedKeys, random: Random = os.urandom) -> bytes:
    """Encode and seal a keys object."""
    body = msgspec.msgpack.encode(wrapped)
    _DECODER.decode(body)
    nonce = random(NONCE_BYTES)
    head = _KEYS_HEAD.pack(_KEYS_MAGIC, _VERSION, 0, wrapped.tenant, nonce)
    return head + AESGCM(_wrap_key(master, wrapped.tenant)).encrypt(nonce, body, head)


def unwrap_keys(master: bytes, tenant: bytes, data: bytes, where: str) -> WrappedKeys:
    """Return the content of a keys object of `tenant`.

    Raises Damaged or WrongMasterKey, which name `where`.
    """
    if len(data) < _KEYS_HEAD.size + TAG_BYTES:
        raise Damaged(f"the tenant secrets {where} are truncated")
    head = data[: _KEYS_HEAD.size]
    magic, version, zero, owner, nonce = _KEYS_HEAD.unpack(head)
    if (magic, version, zero, owner) != (_KEYS_MAGIC, _VERSION, 0, tenant):
        raise Damaged(f"the tenant secrets {where} have a wrong header")
    try:
        body = AESGCM(_wrap_key(master, tenant)).decrypt(nonce, data[_KEYS_HEAD.size :], head)
    except InvalidTag as error:
        raise WrongMasterKey(
            f"the tenant secrets {where} cannot be decrypted: they were wrapped with another master key, "
            "or they are damaged"
        ) from error
    return _decode(body, tenant, where)


def _decode(body: bytes, tenant: bytes, where: str) -> WrappedKeys:
    try:
        wrapped = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the tenant secrets {where} are malformed") from error
    if wrapped.tenant != tenant:
        raise Damaged(f"the tenant secrets {where} belong to another tenant")
    return wrapped


def _wrap_key(master: bytes, tenant: bytes) -> bytes:
    return derive("staddle.v1 tenant wrap key", master + tenant)


class KeyStore:
    """Tenants' secrets in the store, wrapped with the master key.

    Attributes:
        file: The file that the master key came from; "": from none.

    """

    def __init__(self, blobs: Blobs, master: bytes, random: Random = os.urandom, *, file: str = "") -> None:
        if len(master) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self.file = file
        self._blobs = blobs
        self._master = master
        self._random = random
        self.copies = Copies(blobs, self._parse, KEYS_BYTES_MAX)
        """The keys objects with their second copies."""

    @classmethod
    def from_file(cls, blobs: Blobs, path: str) -> Self:
        """Return the secrets that the master key in this file opens. Raises MasterKeyError with the reason."""
        return cls(blobs, load_master_key(path), file=path)

    def is_master(self, key: bytes) -> bool:
        """Return whether this is the master key."""
        return hmac.compare_digest(key, self._master)

    def create(self, name: str, now_ns: int) -> TenantKeys:
        """Create secrets for a new tenant, durable on return.

        Raises msgspec.ValidationError for an empty or overlong name, and what the blobs raise.
        """
        wrapped = WrappedKeys(
            tenant=self._random(ID_BYTES),
            name=name,
            created_ns=now_ns,
            root=self._random(KEY_BYTES),
            pack_keys={1: self._random(KEY_BYTES)},
        )
        self._blobs.put(keys_name(wrapped.tenant, 1), wrap_keys(self._master, wrapped, self._random))
        return _tenant_keys(wrapped)

    def load(self, tenant: bytes) -> TenantKeys:
        """Return the tenant's secrets, from its newest object only.

        Raises BlobMissing, Damaged or WrongMasterKey.
        """
        return _tenant_keys(self._load(tenant))

    def opens(self, tenant: bytes, version: int, data: bytes) -> bool:
        """Return whether `data` is this tenant's keys object of this version and opens with the
        master key.
        """
        try:
            return (
                max(unwrap_keys(self._master, tenant, data, keys_name(tenant, version)).pack_keys) == version
            )
        except Damaged:
            return False

    def tenants(self) -> list[StoredTenant]:
        """Return the tenants with secrets in this store, by id. Raises as `load` does."""
        return [self.tenant(tenant) for tenant in self.tenant_ids()]

    def tenant(self, tenant: bytes) -> StoredTenant:
        """Return what the tenant's newest secrets say about it. Raises as `load` does."""
        wrapped = self._load(tenant)
        return StoredTenant(wrapped.tenant, wrapped.name, wrapped.created_ns)

    def tenant_ids(self) -> list[bytes]:
        """Return the tenant ids without any key, to continue despite one tenant's damaged secrets."""
        return sorted({parse_keys_name(name)[0] for name in self.copies.names("keys")})

    def _load(self, tenant: bytes) -> WrappedKeys:
        versions = [parse_keys_name(name)[1] for name in self.copies.names(f"keys/{tenant.hex()}")]
        # Never fall back to an older object: packs sealed with a missing key would look damaged.
        return self.copies.read(keys_name(tenant, max(versions, default=1)))

    def _parse(self, name: str, data: bytes) -> WrappedKeys:
        tenant, version = parse_keys_name(name)
        wrapped = unwrap_keys(self._master, tenant, data, name)
        if max(wrapped.pack_keys) != version:
            raise Damaged(f"the tenant secrets {name} hold other versions than their name states")
        return wrapped


def _tenant_keys(wrapped: WrappedKeys) -> TenantKeys:
    return TenantKeys(wrapped.tenant, wrapped.root, dict(wrapped.pack_keys))


def parse_keys_name(name: str) -> tuple[bytes, int]:
    """Return tenant and version from a keys object's name.

    Raises Damaged for a name that is not Staddle's.
    """
    try:
        _, tenant, version = name.split("/")
        parsed = bytes.fromhex(tenant), int(version)
    except ValueError as error:
        raise Damaged(f"invalid name of a keys object: {name}") from error
    if keys_name(*parsed) != name:
        raise Damaged(f"invalid name of a keys object: {name}")
    return parsed
