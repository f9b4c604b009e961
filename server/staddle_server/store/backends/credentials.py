"""Credentials for S3 that lie in a file: read when it is opened, and again whenever the file changes."""

from __future__ import annotations

import configparser
import logging
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from staddle._base.given_files import GivenError, read, text_of

from staddle_server.base.errors import Fault

if TYPE_CHECKING:
    from obstore.store import S3Credential

_log = logging.getLogger(__name__)

ASKED_AGAIN: Final = timedelta(seconds=60)
"""How long obstore may use what it was given. It asks again minutes before that, so in effect for every
request, but at most ten times a second.
"""
_OTHER_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""With one of these set, obstore finds credentials without help."""
CREDENTIALS_BYTES_MAX: Final = 1024 * 1024
_GIVEN: Final = ("access_key_id", "secret_access_key", "session_token")


class Keys(NamedTuple):
    """What signs requests."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None

    def __repr__(self) -> str:
        return "Keys(…)"


class FileCredentials:
    """The keys of one profile of a credentials file in the form of AWS. Thread-safe.

    A changed file is read at the next request. While it is missing or incomplete, perhaps because someone is
    about to replace it, the keys that were read last stay in use, and the log says so.
    """

    def __init__(self, path: str, profile: str) -> None:
        """Raises Fault for an unreadable file, and ValueError for one without the profile's keys."""
        self._path = path
        self._profile = profile
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._keys = self._read()

    def keys(self) -> Keys:
        """Return the keys that the file has now."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._keys = self._read()
                    _log.info("the credentials in %s have changed, and were read again", self._path)
                except (Fault, ValueError) as error:
                    _log.warning("%s; the keys that were read before stay in use", error)
            return self._keys

    def __call__(self) -> S3Credential:
        """Return the keys as obstore takes them."""
        keys = self.keys()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + ASKED_AGAIN,
        }

    def _stamp(self) -> tuple[int, ...] | None:
        """Return what changes with the file; None if it is missing."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> Keys:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            # It is read again when it changes, which a pipe cannot support.
            data, _ = read(self._path, CREDENTIALS_BYTES_MAX, "a file of credentials", pipe_s=None)
            parser.read_string(text_of(data, self._path))
        except (GivenError, ValueError, configparser.Error) as error:
            cause = error if isinstance(error, GivenError) else "it is not in the form of AWS"
            raise Fault(
                "INTERNAL", f"the file of credentials {self._path} cannot be used: {cause}"
            ) from error
        section = parser[self._profile] if parser.has_section(self._profile) else {}
        key, secret, token = (section.get(f"aws_{name}", "") for name in _GIVEN)
        if not (key and secret):
            raise ValueError(f"the file of credentials {self._path} has no keys of {self._profile}")
        return Keys(key, secret, token or None)


def keys_of_environment(environ: Mapping[str, str]) -> Keys | None:
    """Return the keys in `environ`; None without."""
    key, secret, token = (environ.get(f"AWS_{name.upper()}", "") for name in _GIVEN)
    return Keys(key, secret, token or None) if key else None


def file_credentials(environ: Mapping[str, str]) -> FileCredentials | None:
    """Return the keys of the profile AWS_PROFILE in ~/.aws/credentials (AWS_SHARED_CREDENTIALS_FILE); None if
    `environ` names other credentials, or the file has none.

    Raises Fault for an unreadable file.
    """
    if any(environ.get(name) for name in _OTHER_CREDENTIALS):
        return None
    named = environ.get("AWS_SHARED_CREDENTIALS_FILE", "")
    path = named or os.path.join(environ.get("HOME", "/"), ".aws", "credentials")
    if not named and not os.path.exists(path):
        return None
    try:
        return FileCredentials(path, environ.get("AWS_PROFILE") or "default")
    except ValueError:
        return None
