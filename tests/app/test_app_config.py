"""Settings: from flag, then environment, then file; every error names its origin."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle._base.figures import duration, duration_s, size_bytes
from staddle._base.given_files import GivenError, read
from staddle_server.app import settings_reading as config
from staddle_server.app.addresses import Address, UnixAddress, parse_address
from staddle_server.app.settings import OPTIONS, Option, Settings, SettingsError


def load(
    flags: dict[str, str] | None = None, env: dict[str, str] | None = None, file: str | None = None
) -> Settings:
    return config.load({"data": "/srv/x", **(flags or {})}, env or {}, file)


def test_every_setting_has_an_option_and_every_option_a_setting() -> None:
    assert sorted(option.field for option in OPTIONS) == sorted(
        field.name for field in dataclasses.fields(Settings)
    )


def test_no_variable_has_a_name_that_orchestrators_inject() -> None:
    for option in OPTIONS:
        assert option.variable.startswith("STADDLED_")
        assert not option.variable.endswith("_PORT")
        assert "_SERVICE_" not in option.variable


def test_the_defaults_listen_on_loopback_without_tls() -> None:
    settings = load()
    assert settings.listen == Address("127.0.0.1", 7443)
    assert settings.tls_cert is None
    assert settings.endpoint is None
    assert (settings.lease_s, settings.upload_life_s, settings.drain_s) == (300, 7 * 86_400, 20)


EXAMPLES = {
    "store": ("s3://flag/a", "gs://variable/b", "az://file/c"),
    "catalog": ("postgresql://flag/a", "postgresql://variable/b", "postgresql://file/c"),
    "master_key": ("/a", "env:B", "command:c d"),
    "listen": ("127.0.0.1:1", "127.0.0.2:2", "localhost:3"),
    "socket_mode": ("0600", "0666", "660"),
    "http": ("127.0.0.1:1", "127.0.0.2:2", "localhost:3"),
    "traces": ("http://a:1/x", "https://b/x", "http://c:3"),
    "metrics": ("public", "token", "public"),
    "metrics_datasets": ("1", "2", "3"),
    "endpoint": ("a:1", "b:2", "c:3"),
    "tls_cert": ("/a", "/b", "/c"),
    "tls_key": ("/a", "/b", "/c"),
    "tls_client_ca": ("/a", "/b", "/c"),
    "streams_max": ("1", "2", "3"),
    "lease_s": ("10s", "11s", "12s"),
    "upload_life_s": ("1h", "2h", "3h"),
    "drain_s": ("1s", "2s", "3s"),
    "retention_every_s": ("0s", "1m", "2h"),
    "runs_kept_s": ("1d", "30d", "52w"),
    "parity_percent": ("10", "20", "30"),
    "min_free": ("1GiB", "2%", "auto"),
    "gc_every_s": ("1h", "2h", "3h"),
    "cache_bytes": ("1GiB", "2GiB", "0"),
    "scrub_period_s": ("1d", "2d", "3d"),
    "drill_period_s": ("1d", "2d", "0"),
    "scrub_bytes_per_s": ("1MiB", "2MiB", "3MiB"),
    "replicate_to": ("/flag", "s3://variable/b", "/file"),
    "replicate_every_s": ("1s", "2s", "3s"),
    "replicate_bytes_per_s": ("1MiB", "2MiB", "3MiB"),
    "replicate_grace_s": ("1d", "2d", "3d"),
    "notify": ("/a", "/b", "/c"),
    "log_format": ("json", "text", "auto"),
    "log_level": ("debug", "error", "warning"),
}


@pytest.mark.parametrize(
    "option", [each for each in OPTIONS if each.field != "data"], ids=lambda each: each.name
)
def test_a_flag_comes_before_a_variable_before_the_file_before_the_default(
    option: Option, tmp_path: Path
) -> None:
    in_flag, in_variable, in_file = EXAMPLES[option.field]
    file = tmp_path / "server.toml"
    others = {"tls_cert": "/other", "tls_key": "/other"}
    others.pop(option.field, None)
    file.write_text(
        f'{option.key} = "{in_file}"\n' + "".join(f'{key} = "{value}"\n' for key, value in others.items())
    )

    def value(flags: dict[str, str], env: dict[str, str]) -> object:
        return getattr(load(flags, env, str(file)), option.field)

    assert value({option.field: in_flag}, {option.variable: in_variable}) == option.parse(in_flag)
    assert value({}, {option.variable: in_variable}) == option.parse(in_variable)
    assert value({}, {option.variable: ""}) == option.parse(in_file)
    assert value({}, {}) == option.parse(in_file)


def test_the_file_in_the_data_directory_is_read_by_default_and_a_named_one_replaces_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "server.toml").write_text("streams_max = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("streams_max = 8\n")
    data = {"data": str(tmp_path)}
    assert config.load(data, {}).streams_max == 7
    assert config.load(data, {"STADDLED_CONFIG": str(other)}).streams_max == 8
    assert config.load(data, {"STADDLED_CONFIG": "/nowhere"}, str(other)).streams_max == 8


def test_the_data_directory_may_come_from_a_named_file_and_paths_there_are_relative_to_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "s.toml"
    file.write_text('data = "here"\ntls_cert = "tls/server.crt"\ntls_key = "/etc/server.key"\n')
    settings = config.load({}, {}, str(file))
    assert settings.data == tmp_path / "here"
    assert settings.tls_cert == tmp_path / "tls/server.crt"
    assert settings.tls_key == Path("/etc/server.key")


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("stream_max = 7\n")
    with pytest.raises(
        SettingsError, match=r"s\.toml: unknown setting 'stream_max'; the nearest is 'streams_max'"
    ):
        load(file=str(file))


def test_an_unknown_variable_is_ignored() -> None:
    load(env={"STADDLED_UNHEARD_OF": "1", "STADDLED_PORT": "tcp://10.0.0.1:7443"})


def test_without_a_data_directory_the_error_names_the_places() -> None:
    with pytest.raises(SettingsError, match="--data DIR, STADDLED_DATA"):
        config.load({}, {})


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("listen", "7443", "--listen is '7443': expected HOST:PORT"),
        ("http", "7480", "127.0.0.1:7480 or [::1]:7480"),
        ("listen", "127.0.0.1:65536", "highest port is 65535"),
        ("listen", "[::1:7443", "expected HOST:PORT"),
        ("endpoint", "0.0.0.0:7443", "give a host name"),
        ("endpoint", "staddle:0", "give a host name"),
        ("streams_max", "0", "from 1 to 1024"),
        ("streams_max", "٣", "whole number"),
        ("lease_s", "5", "too short, use at least 10s"),
        ("lease_s", "five", "use a number with s, m, h, d, w or y"),
        ("lease_s", "10M", "M could be minutes or months"),
        ("lease_s", "10m5", "use a number with s, m, h, d, w or y"),
        ("scrub_bytes_per_s", "1.5", "use a whole number of bytes, or a number with k, M, G or T"),
        (
            "tls_key",
            "-----BEGIN PRIVATE KEY-----\nMIIsecret",
            "is something else: expected the name of a file",
        ),
        ("drain_s", "-1s", "use a number with s, m, h, d, w or y"),
        ("scrub_bytes_per_s", "20 crates", "use a whole number of bytes, or a number with k, M, G or T"),
        ("scrub_bytes_per_s", "1KiB", "too small, use at least 64.0 KiB"),
        ("log_format", "xml", "expected auto or json or text"),
        ("tls_cert", "a\0b", "NUL"),
        ("data", "~nobody-of-this-name/data", "home directory does not exist"),
    ],
)
def test_a_bad_value_is_named_with_its_origin_and_what_was_expected(field: str, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        load({field: text})
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "streams_max = true",
        "streams_max = [1]",
        "data = 1979-05-27",
        "= 3",
        "\xff",
        "streams_max = " + "9" * 5000,
        "data = " + "[" * 2000,
    ],
    ids=["boolean", "list", "date", "no key", "no UTF-8", "number too long", "lists in lists"],
)
def test_an_invalid_settings_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"s\.toml"):
        load(file=str(file))


def test_an_impossible_file_name_is_an_error_that_says_so() -> None:
    with pytest.raises(SettingsError, match="File name too long"):
        load({"data": "d" * 5000})
    with pytest.raises(SettingsError, match="home directory does not exist"):
        load(file="~nobody-of-this-name/s.toml")


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(file=str(tmp_path / "missing.toml"))


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:7443", "[::]:7443", "192.0.2.1:7443", "backup.example.org:7443", "127.evil.org:1"]
)
def test_beyond_loopback_nothing_starts_without_tls(listen: str) -> None:
    with pytest.raises(SettingsError, match="which needs TLS"):
        load({"listen": listen})
    assert load({"listen": listen, "tls_cert": "/c", "tls_key": "/k"}).listen.port in {7443, 1}


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.9.1:7443", "[::1]:7443", "localhost:7443"])
def test_on_loopback_tls_may_be_left_out(listen: str) -> None:
    assert str(load({"listen": listen}).listen) == listen


def test_a_certificate_needs_its_key_and_a_client_authority_needs_both() -> None:
    with pytest.raises(SettingsError, match="belong together"):
        load({"tls_cert": "/c"})
    with pytest.raises(SettingsError, match="needs --tls-cert"):
        load({"tls_client_ca": "/ca"})


@given(st.integers(min_value=0, max_value=999_999_999))
def test_a_duration_is_read_back_as_it_was_written(seconds: int) -> None:
    assert duration_s(duration(seconds)) == seconds


@given(st.text(max_size=40))
def test_an_address_is_either_refused_or_read_back_as_it_was_written(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


# --- Unix sockets


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/run/staddle/server.sock", "/run/staddle/server.sock"),
        ("unix:///run/staddle/server.sock", "/run/staddle/server.sock"),
        ("unix:/run/two words:1/50%/#?☂", "/run/two words:1/50%/#?☂"),
        ("unix:/" + "x" * 106, "/" + "x" * 106),
        ("UNIX:/run/S", "/run/S"),
        ("Unix:///run/@S", "/run/@S"),
    ],
)
def test_a_unix_socket_is_an_address_and_needs_no_tls(text: str, path: str) -> None:
    settings = load({"listen": text})
    assert settings.listen == UnixAddress(path)
    assert (str(settings.listen), settings.listen.is_loopback) == (f"unix:{path}", True)
    assert parse_address(str(settings.listen)) == settings.listen
    assert settings.socket_mode == 0o660


def test_the_path_of_a_socket_is_relative_to_what_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"listen": "unix:s"}).listen == UnixAddress(f"{tmp_path}/s")
    file = tmp_path / "below" / "server.toml"
    file.parent.mkdir()
    file.write_text('listen = "unix:s"\nendpoint = "unix:/else/where"\n')
    read = load(file=str(file))
    assert read.listen == UnixAddress(f"{file.parent}/s")
    assert read.endpoint == UnixAddress("/else/where")
    monkeypatch.setenv("HOME", "/home/web")
    file.write_text('listen = "UNIX:./@s"\nendpoint = "unix:@s"\n')
    with pytest.raises(SettingsError, match=r"endpoint in .* abstract socket"):
        load(file=str(file))
    file.write_text('listen = "UNIX:./@s"\n')
    assert load(file=str(file)).listen == UnixAddress(f"{file.parent}/@s")
    assert load({"listen": "unix:~/s"}).listen == UnixAddress("/home/web/s")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unix:", "expected the path of a socket"),
        ("unix:/run/", "expected the path of a socket"),
        ("unix://host/run/s", "has no host"),
        ("unix:/a\nb", "without control characters"),
        ("unix:/\udcff", "UTF-8"),
        ("unix:/" + "x" * 107, "limit for a socket's path is 107 bytes, and /x+ has 108"),
        ("unix:/" + "☂" * 36, "limit .* is 107 bytes.* has 109"),
        ("unix-abstract:staddle", "every user of this machine"),
        ("unix:@staddle", "every user of this machine .* abstract socket"),
        ("UNIX:@staddle", "every user of this machine .* abstract socket"),
    ],
)
def test_an_invalid_unix_socket_address_is_named(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s)--listen is .*{why}"):
        load({"listen": text})


@pytest.mark.parametrize("mode", ["rw", "0888", "066", "0060", "4660", "-660", ""])
def test_an_invalid_socket_mode_is_named(mode: str) -> None:
    with pytest.raises(SettingsError, match=r"--socket-mode is .*in octal"):
        load({"socket_mode": mode})


def test_the_place_of_a_master_key_is_a_file_relative_to_what_names_it_a_variable_or_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"master_key": "key"}).master_key == f"{tmp_path}/key"
    file = tmp_path / "below" / "server.toml"
    file.parent.mkdir()
    for text, place in (
        ("key", f"{file.parent}/key"),
        ("env:KEY", "env:KEY"),
        ("command:a b", "command:a b"),
    ):
        file.write_text(f'master_key = "{text}"\n')
        assert load(file=str(file)).master_key == place
    for text in ("env:", "command: "):
        with pytest.raises(SettingsError, match=r"--master-key is .*nothing follows"):
            load({"master_key": text})


# --- values in the forms that people write


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO", "info"),
        ("Warning", "warning"),
        ("WARN", "warning"),
        ("warn", "warning"),
        ("Err", "error"),
        ("DEBUG", "debug"),
    ],
)
def test_log_levels_are_read_by_their_usual_names(tmp_path: Path, text: str, level: str) -> None:
    assert load({"log_level": text}).log_level == level
    file = tmp_path / "server.toml"
    file.write_text(f'log_level = "{text}"\n')
    assert load(file=str(file)).log_level == level


@pytest.mark.parametrize("text", ["verbose", "fatal", "trace", "10"])
def test_an_ambiguous_log_level_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="expected debug or info or warning or error"):
        load({"log_level": text})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("10m", 600),
        ("10 min", 600),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("7D", 604_800),
        ("7 days", 604_800),
        ("2w", 1_209_600),
        ("1.5h", 5400),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_durations_are_read_in_their_usual_forms(text: str, seconds: float) -> None:
    assert duration_s(text, bare=True) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("1 GiB", 1 << 30),
        ("1GB", 1 << 30),
        ("1g", 1 << 30),
        ("512 kb", 1 << 19),
        ("1.5G", 3 << 29),
        ("20MiB", 20 << 20),
        ("7 B", 7),
    ],
)
def test_sizes_are_read_in_their_usual_forms_with_binary_units(text: str, size: int) -> None:
    assert size_bytes(text) == size


def test_variables_are_read_as_docker_and_windows_write_them(tmp_path: Path) -> None:
    settings = load(
        env={
            "STADDLED_LISTEN": '"127.0.0.1:9"',
            "STADDLED_LEASE": "6m\r",
            "STADDLED_LOG_LEVEL": " INFO ",
            "STADDLED_TLS_CERT": "/etc/tls/server.crt\r\n",
            "STADDLED_TLS_KEY": "'/etc/tls/server.key'",
            "STADDLED_DRAIN": " \r\n",
        }
    )
    assert (str(settings.listen), settings.lease_s, settings.log_level, settings.drain_s) == (
        "127.0.0.1:9",
        360,
        "info",
        20,
    )
    assert (str(settings.tls_cert), str(settings.tls_key)) == ("/etc/tls/server.crt", "/etc/tls/server.key")
    odd = tmp_path / "'odd'"
    odd.mkdir()
    assert config.load({"data": str(odd)}, {}).data == odd, "an existing name is taken literally"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_settings_file_is_read_as_windows_writes_it(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes('streams-max = 7\r\n# Übung\r\nLease = "6 min"\r\n'.encode(encoding))
    settings = load(file=str(file))
    assert (settings.streams_max, settings.lease_s) == (7, 360)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[server]\nstreams_max = 7\n", r"section \[server\]"),
        (b"streams_max = [7]\n", "streams_max must be a string or a number, not a list"),
        (b"streams_max = true\n", "not true or false"),
        (b"streams-max = 7\nstreams_max = 8\n", "streams_max twice"),
        (b"streams_max = 7\nstreams_max = 8\n", "line 2"),
        (b"lease = 6m\n", r"line 1.*put text in quotes"),
        (b'lease = "6m"\n# \xfc\n', r"not text in UTF-8 \(line 2\)"),
    ],
)
def test_a_wrong_settings_file_says_what_is_wrong_and_where(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes(text)
    with pytest.raises(SettingsError, match=words) as caught:
        load(file=str(file))
    assert str(file) in str(caught.value)


def test_a_settings_path_without_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "server.toml").mkdir()
    with pytest.raises(SettingsError, match=r"server\.toml: it is a directory, not a settings file"):
        config.load({"data": str(tmp_path)}, {})
    with pytest.raises(SettingsError, match="device"):
        load(file="/dev/zero")
    assert load(file=os.devnull).streams_max == load().streams_max
    reader, writer = os.pipe()
    os.write(writer, b"streams_max = 7\n")
    os.close(writer)
    assert load(file=f"/dev/fd/{reader}").streams_max == 7
    with pytest.raises(SettingsError, match="is a pipe"):  # empty now, it would set everything to its default
        config.load({"data": "/srv/x"}, {}, f"/dev/fd/{reader}", again=True)
    os.close(reader)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GivenError, match=r"nothing was written to it in 0\.01 s"):
        read(tmp_path / "pipe", 100, "a settings file", pipe_s=0.01)


def test_a_misspelt_variable_is_named_with_the_right_one() -> None:
    environ = {
        "STADDLED_TLS_CLIENTCA": "/ca",
        "STADDLED_LISTEN": "127.0.0.1:1",
        "STADDLED_CONFIG": "",
        "STADDLED_SERVICE_PORT": "1",
        "STADDLED_PORT_7443_TCP": "tcp://10.0.0.1:7443",
        "STADDLED_UNHEARD_OF": "1",
    }
    assert config.unknown_variables(environ) == [
        "STADDLED_TLS_CLIENTCA (did you mean STADDLED_TLS_CLIENT_CA?)"
    ]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://key:sesame@bucket/a", "credentials do not belong in the URL"),
        ("s3://bucket/a?secret=sesame", "option that is not known"),
        ("/srv/sesame", "expected s3://BUCKET/PREFIX, gs://"),
        ("ftp://sesame/", "expected s3://BUCKET/PREFIX, gs://"),
    ],
)
def test_a_store_that_cannot_be_one_is_refused_without_repeating_what_may_be_a_secret(
    url: str, why: str
) -> None:
    with pytest.raises(SettingsError, match=f"--store is something else: .*{why}") as caught:
        load({"store": url})
    assert "sesame" not in str(caught.value)
