"""Reads the settings: from flags, then the environment, then a TOML file, then defaults.

Nothing below `app` reads the environment.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from staddle._base.given_files import PIPE_S, GivenError, read, text_of, unquoted

from staddle_server.app.addresses import (
    ABSTRACT,
    UNIX_PREFIX,
    after_unix,
    parse_address,
    parse_endpoint,
    parse_path,
)
from staddle_server.app.settings import (
    KEY_KINDS,
    OPTIONS,
    VARIABLE_PREFIX,
    Option,
    Settings,
    SettingsError,
    parse_catalog,
    parse_key_place,
    parse_store,
)

CONFIG_VARIABLE: Final = "STADDLED_CONFIG"
CONFIG_NAME: Final = "server.toml"
CONFIG_BYTES_MAX: Final = 1024 * 1024
_BY_KEY: Final = {option.key: option for option in OPTIONS}


_BY_FIELD: Final = {option.field: option for option in OPTIONS}
_DATA: Final = _BY_FIELD["data"]


def load(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    config: str | None = None,
    *,
    again: bool = False,
) -> Settings:
    """Return the settings, each from the first source that has it: flag, environment (empty is unset), file,
    default.

    `flags` is by field. The file is `config`, else STADDLED_CONFIG, else DIR/server.toml if it exists; a
    named file must exist. `again`: it was read before, so a pipe, which is empty now, is refused. Raises
    SettingsError.
    """
    flag_texts = {_BY_FIELD[field]: text for field, text in flags.items() if text is not None}
    variables = {option: environ.get(option.variable, "") for option in OPTIONS}
    variable_texts = {option: text for option, text in variables.items() if unquoted(text)}
    named_file = config or unquoted(environ.get(CONFIG_VARIABLE, "")) or None
    data = next((texts[_DATA] for texts in (flag_texts, variable_texts) if _DATA in texts), None)
    file_path, file_texts = _read_config(named_file, data, again=again)
    values: dict[str, object] = {}
    for option in OPTIONS:
        text, origin = option.default, "the default"
        if option in flag_texts:
            text, origin = flag_texts[option], f"--{option.name}"
        elif option in variable_texts:
            text, origin = variable_texts[option], option.variable
        elif option in file_texts:
            text, origin = file_texts[option], f"{option.key} in {file_path}"
        values[option.field] = _parse(option, text, origin)
    return _checked(values)


def _parse(option: Option, text: str, origin: str) -> object:
    if text == "" and option.default == "":
        return None
    try:
        return option.parse(text if option.parse in {parse_path, parse_key_place} else unquoted(text))
    except ValueError as error:
        # A key that was pasted, or a URL, which may have a password where none belongs.
        secret = "-----BEGIN " in text or "://" in text or option.parse in {parse_store, parse_catalog}
        shown = "something else" if secret else repr(text[:200])
        raise SettingsError(f"{origin} is {shown}: {error}") from error


_UNQUOTED: Final = ("Invalid value", "after a statement")
"""tomllib's message for text without quotes."""


def _read_config(named: str | None, data: str | None, *, again: bool) -> tuple[Path, dict[Option, str]]:
    try:
        path = parse_path(named) if named else parse_path(data or ".") / CONFIG_NAME
    except ValueError as error:
        raise SettingsError(f"cannot read the settings file of {named or data!r}: {error}") from error
    try:
        if named is None and (data is None or not _exists(path)):
            return path, {}
        raw, _ = read(path, CONFIG_BYTES_MAX, "a settings file", pipe_s=None if again else PIPE_S)
        table = tomllib.loads(text_of(raw, path))
    except GivenError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also numbers too long, deeply nested lists
        hint = "; put text in quotes" if any(words in str(error) for words in _UNQUOTED) else ""
        raise SettingsError(f"{path} is not TOML: {error}{hint}") from error
    texts: dict[Option, str] = {}
    for key, value in table.items():
        option = _known(key, value, path)
        if option in texts:
            raise SettingsError(f"{path} has {option.key} twice")
        texts[option] = _text(option, value, path)
    return path, texts


def _exists(path: Path) -> bool:
    """Return whether the file exists. Raises OSError if that cannot be determined."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _known(key: str, value: object, path: Path) -> Option:
    name = key.replace("-", "_").lower()
    option = _BY_KEY.get(name)
    if option is None and isinstance(value, dict):
        raise SettingsError(f"{path} has a section [{key}]: put settings at the top, without a section")
    if option is None:
        near = difflib.get_close_matches(name, _BY_KEY, n=1, cutoff=0.0)[0]
        raise SettingsError(f"{path}: unknown setting {key!r}; the nearest is {near!r}")
    return option


_KINDS: Final[Mapping[type, str]] = {bool: "true or false", list: "a list", dict: "a table"}


def _text(option: Option, value: object, path: Path) -> str:
    """Return a value of the file in the form of a flag. Paths in the file are relative to it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = _KINDS.get(type(value), type(value).__name__)
        raise SettingsError(f"{path}: {option.key} must be a string or a number, not {kind}")
    if option.parse is parse_key_place and str(value).startswith(KEY_KINDS):
        return str(value)
    if option.parse in {parse_path, parse_key_place} and value:
        return str(path.parent / os.path.expanduser(str(value)))
    socket = after_unix(unquoted(str(value)))
    if option.parse in {parse_address, parse_endpoint} and socket is not None:
        socket = os.path.expanduser(socket)
        return UNIX_PREFIX + (socket if socket.startswith(("/", ABSTRACT)) else str(path.parent / socket))
    return str(value)


def _checked(values: dict[str, object]) -> Settings:
    if values["data"] is None:
        raise SettingsError("set the data directory: --data DIR, STADDLED_DATA, or data in the settings file")
    for field in ("store", "catalog", "master_key"):
        values[field] = values[field] or ""
    settings = Settings(**values)  # type: ignore[arg-type]  # the table gives each field its own type; a test walks it
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise SettingsError("--tls-cert and --tls-key belong together: give both or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
    for address in (settings.listen, settings.http):
        if address is None or address.is_loopback or settings.tls_cert is not None:
            continue
        raise SettingsError(
            f"{address} can be reached from other machines, which needs TLS: give "
            "--tls-cert and --tls-key (`staddle-server cert` makes them), or listen on 127.0.0.1 or unix:PATH"
        )
    return settings


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return variables that look like settings but are not, each with the nearest setting: a typing error
    enables nothing.

    Leaves out those that orchestrators set for a service of this name.
    """
    known = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE}
    found = []
    for name in sorted(set(environ) - known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name.startswith(VARIABLE_PREFIX) and near and "_SERVICE_" not in name and "_PORT" not in name:
            found.append(f"{name} (did you mean {near[0]}?)")
    return found
