"""The file of notification targets: TOML, one table [[target]] for each."""

from __future__ import annotations

import difflib
import email.utils
import importlib.util
import logging
import os
import re
import ssl
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from staddle._base.figures import duration_s, listed
from staddle._base.given_files import GivenError, read, text_of, unquoted
from staddle._base.pem_files import read_pem

from staddle_server.app.settings import KEY_OF_VARIABLE, SettingsError
from staddle_server.upkeep.events.kinds import KINDS, SEVERITIES, WARNING
from staddle_server.upkeep.notify.apprise import Apprise
from staddle_server.upkeep.notify.command import Command
from staddle_server.upkeep.notify.delivery import AnyTarget
from staddle_server.upkeep.notify.http_post import HttpUrl, parse_http_url
from staddle_server.upkeep.notify.ping import EVERY_S, Ping
from staddle_server.upkeep.notify.smtp import PORTS, STARTTLS, Smtp
from staddle_server.upkeep.notify.targets import TARGETS_MAX, TIMEOUT_S, Filter
from staddle_server.upkeep.notify.webhook import Webhook

_log = logging.getLogger(__name__)

NOTIFY_NAME: Final = "notify.toml"
FILE_BYTES_MAX: Final = 256 * 1024
SECRET_BYTES_MAX: Final = 4096
TIMEOUT_S_MAX: Final = 300.0
EVERY_S_MIN: Final = 30.0
EVERY_S_MAX: Final = 86_400.0
WORDS_MAX: Final = 64
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_ADDRESS: Final = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,255}")


def targets_of(data: Path, given: Path | None, environ: Mapping[str, str]) -> list[AnyTarget]:
    """Return the targets of the file `given`; without it, of DIR/notify.toml; without both, none.

    Secrets are read, too. SettingsError names the file, the target, and what is wrong.
    """
    path = given or data / NOTIFY_NAME
    # A link to nothing is not an absent file: its targets would go missing without a word.
    if given is None and not os.path.lexists(path):
        return []
    try:
        raw, _ = read(path, FILE_BYTES_MAX, "a file of notification targets")
        found = tomllib.loads(text_of(raw, path))
    except GivenError as error:
        raise SettingsError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    tables = found.pop("target", [])
    if found or not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        strange = f", not {min(found)!r}" if found else ""
        raise SettingsError(f"{path} must consist of tables [[target]]{strange}")
    if len(tables) > TARGETS_MAX:
        raise SettingsError(f"{path} has more than {TARGETS_MAX} targets")
    targets = [_Table(path, number, table, environ).target() for number, table in enumerate(tables, 1)]
    names = [target.name for target in targets]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"{path} has two targets named {double!r}: rename one")
    return targets


class _Table:
    """One table of the file. Takes each key once, and refuses what is left."""

    def __init__(self, path: Path, number: int, table: dict[str, Any], environ: Mapping[str, str]) -> None:
        self._path = path
        self._left = dict(table)
        self._known: list[str] = []
        self._environ = environ
        name = table.get("name")
        self._where = f"{path}: target {name if isinstance(name, str) else number}"

    def target(self) -> AnyTarget:
        """Return the target."""
        name, kind = self._text("name"), self._text("kind")
        if _NAME.fullmatch(name) is None:
            raise self._wrong("name", "use 1 to 64 of a-z 0-9 . _ -")
        make = {
            "webhook": self._webhook,
            "ping": self._ping,
            "smtp": self._smtp,
            "command": self._command,
            "apprise": self._apprise,
        }
        if kind not in make:
            raise self._wrong("kind", "use " + " or ".join(make))
        made = make[kind](name, self._filter())
        for key in self._left:
            near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{self._where}: {kind} has no {key!r}; the nearest is {near!r}")
        return made

    # --- kinds

    def _webhook(self, name: str, of: Filter) -> AnyTarget:
        secret = self._secret("secret").encode()
        return Webhook(name, of, self._url(), secret, self._trust(), self._timeout_s())

    def _ping(self, name: str, of: Filter) -> AnyTarget:
        every_s = self._seconds("every", EVERY_S, EVERY_S_MIN, EVERY_S_MAX)
        return Ping(name, of, self._url(), every_s, self._trust(), self._timeout_s())

    def _smtp(self, name: str, of: Filter) -> AnyTarget:
        host, security = self._text("host"), self._text("security", STARTTLS)
        if _HOST.fullmatch(host) is None:
            raise self._wrong("host", "expected the name or address of a mail server, without a port")
        if security not in PORTS:
            raise self._wrong("security", "use " + " or ".join(PORTS))
        port = self._take("port", PORTS[security])
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65_535:
            raise self._wrong("port", "expected a whole number from 1 to 65535")
        user, password = self._text("user", ""), self._secret("password")
        if bool(user) != bool(password):
            raise SettingsError(f"{self._where}: user and password belong together: give both or neither")
        sender = self._text("from")
        if _ADDRESS.fullmatch(email.utils.parseaddr(sender)[1]) is None or not sender.isprintable():
            raise self._wrong("from", "expected an address, such as staddle@example.com")
        to = self._texts("to")
        if not to or any(_ADDRESS.fullmatch(each) is None for each in to):
            raise self._wrong("to", 'expected a list of addresses, such as ["ops@example.com"]')
        trust, timeout_s = self._trust(), self._timeout_s()
        return Smtp(name, of, host, port, security, sender, to, user, password, trust, timeout_s)

    def _command(self, name: str, of: Filter) -> AnyTarget:
        words = self._texts("command")
        if not words or not words[0].startswith("/") or len(words) > WORDS_MAX:
            raise self._wrong(
                "command", 'expected a list of words, the first an absolute path: ["/usr/local/bin/page"]'
            )
        return Command(name, of, words, self._timeout_s())

    def _apprise(self, name: str, of: Filter) -> AnyTarget:
        if importlib.util.find_spec("apprise") is None:
            raise SettingsError(
                f"{self._where}: apprise needs an extra, which is not installed: pip install 'staddle[server,apprise]'"
            )
        return Apprise(name, of, self._url_text(self._text("url")), self._timeout_s())

    # --- values

    def _filter(self) -> Filter:
        kinds, severity = self._texts("kinds"), self._text("severity", WARNING)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise SettingsError(
                f"{self._where}: unknown kind of event {unknown[0]!r}: there are {listed(sorted(KINDS))}"
            )
        if severity not in SEVERITIES:
            raise self._wrong("severity", "use " + " or ".join(SEVERITIES))
        return Filter(tuple(kinds), tuple(self._texts("tenants")), severity)

    def _url(self) -> HttpUrl:
        """Return the URL, which is given itself, or as FILE or env:NAME because it is a secret."""
        text = self._text("url")
        try:
            return parse_http_url(self._url_text(text))
        except ValueError as error:
            raise SettingsError(f"{self._where}: url: {error}") from error

    def _url_text(self, text: str) -> str:
        """Return a URL that is given itself, which no path is like: Apprise has its own, such as ntfy://TOPIC."""
        return text if "://" in text else self._secret_at("url", text)

    def _trust(self) -> ssl.SSLContext | None:
        """Return what verifies certificates, if the authority is given."""
        text = self._text("ca", "")
        if not text:
            return None
        path = self._below(text)
        try:
            blocks = read_pem(path, pipe_s=None).certificates()  # a reload reads it again
            return ssl.create_default_context(cadata=b"".join(block.pem for block in blocks).decode())
        except GivenError as error:
            raise SettingsError(f"{self._where}: ca: {error}") from error
        except ssl.SSLError as error:
            raise SettingsError(f"{self._where}: ca: a certificate in {path} is damaged") from error

    def _timeout_s(self) -> float:
        return self._seconds("timeout", TIMEOUT_S, 1.0, TIMEOUT_S_MAX)

    def _secret(self, key: str) -> str:
        text = self._text(key, "")
        return self._secret_at(key, text) if text else ""

    def _secret_at(self, key: str, place: str) -> str:
        """Return the secret that a file or a variable holds."""
        if place.startswith(KEY_OF_VARIABLE):
            variable = place.removeprefix(KEY_OF_VARIABLE)
            value = unquoted(self._environ.get(variable, ""))
            if not value:
                raise SettingsError(f"{self._where}: {key}: the variable {variable} is not set")
            return value
        path = self._below(place)
        try:
            raw, mode = read(path, SECRET_BYTES_MAX, "a file with a secret")
            value = unquoted(text_of(raw, path))
            if mode & stat.S_IROTH:
                _log.warning("every user of this machine can read %s: chmod 600 it", path)
        except GivenError as error:
            raise SettingsError(f"{self._where}: {key}: {error}") from error
        if not value:
            raise SettingsError(f"{self._where}: {key}: {path} is empty")
        return value

    def _below(self, text: str) -> Path:
        """Return a path of the file, which is relative to it."""
        return self._path.parent / os.path.expanduser(text)

    def _seconds(self, key: str, default_s: float, least_s: float, most_s: float) -> float:
        text = str(self._take(key, ""))
        if not text:
            return default_s
        try:
            return duration_s(text, least_s, most_s, bare=True)
        except ValueError as error:
            raise SettingsError(f"{self._where}: {key} is {text[:100]!r}: {error}") from error

    def _text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if value is None:
            raise SettingsError(f"{self._where} needs {key}")
        if not isinstance(value, str) or not value.isprintable():
            raise self._wrong(key, "expected a printable text in quotes")
        text = unquoted(value)
        if not text and default != "":
            raise self._wrong(key, "expected a printable text in quotes")
        return text

    def _texts(self, key: str) -> list[str]:
        value = self._take(key, [])
        if not isinstance(value, list) or not all(
            isinstance(each, str) and each and "\0" not in each for each in value
        ):
            raise self._wrong(key, "expected a list of texts")
        return value

    def _take(self, key: str, default: object) -> Any:
        self._known.append(key)
        return self._left.pop(key, default)

    def _wrong(self, key: str, why: str) -> SettingsError:
        return SettingsError(f"{self._where}: {key}: {why}")
