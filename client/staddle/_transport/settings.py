"""Where the server is and who asks: from arguments, the environment and a file, field by field in this order.

The file is the first that exists of: the one that was named, STADDLE_CONFIG, ~/.config/staddle/client.toml,
/etc/staddle/client.toml. It is TOML with the keys server, token, ca, cert, key, server_name, cache_dir; relative paths in it are
relative to it.
"""

import difflib
import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from staddle._base.given_files import GivenError, read, text_of, unquoted
from staddle._errors import ConfigError

UNIX_PREFIX: Final = "unix:"
ABSTRACT: Final = "@"
"""How other programs write a socket without a file; no server listens there."""
CONFIG_VARIABLE: Final = "STADDLE_CONFIG"
CONFIG_FILES: Final = ("~/.config/staddle/client.toml", "/etc/staddle/client.toml")
CONFIG_BYTES_MAX: Final = 64 * 1024
PATH_FIELDS: Final = frozenset({"ca", "cert", "key", "cache_dir"})
NOWHERE: Final = "none"
"""The cache directory that is none."""
NOT_A_PATH: Final = frozenset({"", "system", NOWHERE})

_log = logging.getLogger("staddle")
_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a server, and where to remember what it holds. Empty means: not set.

    Attributes:
        server: HOST:PORT, or unix:PATH; several of them with commas between.
        token: what the server knows the caller by.
        ca: file of the authority that signed the server's certificate, or "system" for the public ones. Empty: no TLS.
        cert: file of the client's own certificate, for mutual TLS.
        key: file of its private key.
        server_name: the name in the server's certificate, where it is not the host of `server`.
        cache_dir: where the client remembers what backups hold, or "none".

    """

    server: str = ""
    token: str = field(default="", repr=False)
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    cache_dir: str = ""


FIELDS: Final = tuple(each.name for each in fields(Settings))


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    default_files: tuple[str, ...] = CONFIG_FILES,
    **overrides: str | None,
) -> Settings:
    """Settings from `overrides`, then STADDLE_* variables, then a file. An empty or None value counts as not set.

    Raises ConfigError where the file cannot be used, and where no server or token was found: it then names every place.
    """
    unknown = sorted(set(overrides) - set(FIELDS))
    if unknown:
        raise ConfigError(f"Unknown setting {', '.join(unknown)}; the settings are {', '.join(FIELDS)}.")
    environment = os.environ if environment is None else environment
    file, looked_at = _find_file(path, environment, default_files)
    from_file = _read_file(file) if file is not None else {}
    found = {
        name: unquoted(overrides.get(name) or "")
        or unquoted(environment.get(_variable(name), ""))
        or from_file.get(name, "")
        for name in FIELDS
    }
    missing = [name for name in ("server", "token") if not found[name]]
    if missing:
        raise _not_found(missing, looked_at, file)
    return Settings(**found)


def _variable(name: str) -> str:
    return f"STADDLE_{name.upper()}"


def _not_found(missing: list[str], looked_at: list[str], file: str | None) -> ConfigError:
    wanted = " and ".join(missing)
    variables = ", ".join(_variable(name) for name in missing)
    places = ["the arguments", f"the environment ({variables})"]
    places += [
        f"{place} (without {wanted})" if place == file else f"{place} (not there)" for place in looked_at
    ]
    return ConfigError(
        f"No {wanted} found. Looked at {'; '.join(places)}. "
        "`staddle-server serve --data DIR` starts a server and prints what to set.",
        facts={"missing": " ".join(missing)},
    )


def _find_file(
    path: str | os.PathLike[str] | None, environment: Mapping[str, str], default_files: tuple[str, ...]
) -> tuple[str | None, list[str]]:
    """The file to read, if any, and the places that were looked at. A file that was named must exist."""
    named, by = (
        (os.fspath(path), "config")
        if path
        else (unquoted(environment.get(CONFIG_VARIABLE, "")), CONFIG_VARIABLE)
    )
    if named:
        if not os.path.exists(named):
            raise ConfigError(f"{by} names {named}, which does not exist.", facts={"path": named})
        return named, [named]
    looked_at = [f"${CONFIG_VARIABLE}"]
    for place in default_files:
        expanded = os.path.expanduser(place)
        looked_at.append(expanded)
        if os.path.exists(expanded):
            return expanded, looked_at
    return None, looked_at


def _read_file(path: str) -> dict[str, str]:
    try:
        data, mode = read(path, CONFIG_BYTES_MAX, "a client.toml")
        table = tomllib.loads(text_of(data, path))
    except GivenError as error:
        raise ConfigError(f"{error}.", facts={"path": path}) from error
    except (ValueError, RecursionError) as error:  # also numbers too long, lists in lists in lists
        hint = "; values stand in quotes" if "Invalid value" in str(error) else ""
        raise ConfigError(f"{path} is not TOML: {error}{hint}.", facts={"path": path}) from error
    values = _checked(table, path)
    if values.get("token") and mode & (stat.S_IRGRP | stat.S_IROTH):
        _warn_readable(path)
    return values


def after_unix(text: str) -> str | None:
    """What follows `unix:`, in any case, in a server's address; None for any other address."""
    return text[len(UNIX_PREFIX) :] if text.lower().startswith(UNIX_PREFIX) else None


def split_servers(text: str) -> list[str]:
    """The parts of the setting `server` between commas, without the space around them."""
    return [part.strip() for part in text.split(",")]


def _checked(table: Mapping[str, object], path: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in table.items():
        name = key.replace("-", "_").lower()
        if name not in FIELDS:
            raise _unknown_key(key, value, path)
        if name in values:
            raise ConfigError(f"{path} has {name} twice.", facts={"path": path})
        if not isinstance(value, str):
            kind = _KINDS.get(type(value), "something else")
            raise ConfigError(f"{path}: {name} must be a string, not {kind}.", facts={"path": path})
        text = unquoted(value)
        if name == "server":
            text = ",".join(_server_beside(path, part) for part in split_servers(text))
        values[name] = _beside(path, text) if name in PATH_FIELDS else text
    return values


_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _unknown_key(key: str, value: object, path: str) -> ConfigError:
    if isinstance(value, dict):
        what = f"{path} has a section [{key[:40]}]: its keys stand at the top, without a section"
    else:
        near = difflib.get_close_matches(key.replace("-", "_").lower(), FIELDS, n=1)
        what = f"{path} has the unknown key {key[:40]}"
        what += f" (is {near[0]} meant?)" if near else ""
    return ConfigError(f"{what}; there are {', '.join(FIELDS)}.", facts={"path": path})


def _beside(path: str, value: str) -> str:
    """A path in a file is relative to the file."""
    if value in NOT_A_PATH or value.startswith("-----BEGIN "):
        return value
    return os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(value))


def _server_beside(path: str, server: str) -> str:
    """An address in a file: the path of a socket is relative to the file."""
    socket = after_unix(server)
    if socket is None or socket.startswith(("/", ABSTRACT)):
        return server
    return UNIX_PREFIX + _beside(path, socket)


def _warn_readable(path: str) -> None:
    if path not in _warned:
        _warned.add(path)
        _log.warning("%s holds a token, and others can read it: chmod 600 it.", path)
