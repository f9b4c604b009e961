"""The sources of the settings."""

import logging
import os
import pathlib
import subprocess
import sys

import pytest
import staddle._transport.settings as config
from staddle import Client, ConfigError
from staddle._transport.settings import FIELDS, load_settings


def write(path: pathlib.Path, text: str, mode: int = 0o600) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_each_field_comes_from_the_first_source_that_has_it(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "client.toml", 'server = "file:1"\ntoken = "file"\nca = "ca.pem"\n')
    settings = load_settings(file, environment={"STADDLE_TOKEN": "environment"}, server="argument:1")
    assert (settings.server, settings.token, settings.ca) == (
        "argument:1",
        "environment",
        str(tmp_path / "ca.pem"),
    )


def test_empty_is_unset(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "client.toml", 'server = "file:1"\ntoken = "file"\ncert = ""\n')
    settings = load_settings(file, environment={"STADDLE_SERVER": "", "STADDLE_TOKEN": ""}, token="", ca=None)
    assert (settings.server, settings.token, settings.ca, settings.cert) == ("file:1", "file", "", "")


def test_the_first_file_that_exists_is_read(tmp_path: pathlib.Path) -> None:
    first, second, named, by_variable = (
        write(tmp_path / name / "client.toml", f'server = "{name}"\ntoken = "t"\n') for name in "abcd"
    )
    files = (str(tmp_path / "missing"), str(first), str(second))
    variable = {"STADDLE_CONFIG": str(by_variable)}
    assert load_settings(environment={}, default_files=files).server == "a"
    assert load_settings(environment=variable, default_files=files).server == "d"
    assert load_settings(named, environment=variable, default_files=files).server == "c"


def test_the_default_files_are_those_of_the_user_and_the_machine(tmp_path: pathlib.Path) -> None:
    assert config.CONFIG_FILES == ("~/.config/staddle/client.toml", "/etc/staddle/client.toml")
    home = pathlib.Path(os.environ["HOME"])
    write(home / ".config/staddle/client.toml", 'server = "localhost:9"\ntoken = "t"\n')
    with Client.from_config() as client:
        assert client.address == "localhost:9"


def test_without_settings_the_error_names_every_source() -> None:
    with pytest.raises(ConfigError) as caught:
        Client.from_config()
    message = str(caught.value)
    for place in (
        "server and token",
        "arguments",
        "STADDLE_SERVER",
        "STADDLE_TOKEN",
        "STADDLE_CONFIG",
        os.path.expanduser("~/.config/staddle/client.toml"),
        "/etc/staddle/client.toml",
        "staddle-server serve",
    ):
        assert place in message
    assert caught.value.facts == {"missing": "server token"}


def test_a_file_without_a_token_is_named(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "client.toml", 'server = "file:1"\n')
    with pytest.raises(ConfigError, match="No token found") as caught:
        load_settings(file, environment={})
    assert f"{file} (without token)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('server = "a"\nserve = "b"\n', "unknown key serve"),
        ("server = 7443\n", "server must be a string"),
        ("server = \n", "is not TOML"),
        ("server = " + "9" * 5000, "is not TOML"),
        ("server = " + "[" * 2000, "is not TOML"),
        ("#" * 70_000, "larger than"),
    ],
)
def test_an_invalid_file_is_an_error(tmp_path: pathlib.Path, text: str, message: str) -> None:
    file = write(tmp_path / "client.toml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(file, environment={})
    assert str(file) in str(caught.value)


def test_a_file_that_was_named_must_exist(tmp_path: pathlib.Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"^config names .*missing\.toml, which does not exist"):
        load_settings(missing, environment={})
    with pytest.raises(ConfigError, match=r"^STADDLE_CONFIG names .*missing\.toml, which does not exist"):
        load_settings(environment={"STADDLE_CONFIG": str(missing)})


def test_paths_are_relative_to_the_file_except_the_word_for_public_authorities(
    tmp_path: pathlib.Path,
) -> None:
    text = 'server = "a"\ntoken = "t"\nca = "system"\ncert = "pki/me.pem"\nkey = "/etc/me.key"\n'
    settings = load_settings(write(tmp_path / "client.toml", text), environment={})
    assert (settings.ca, settings.cert, settings.key) == (
        "system",
        str(tmp_path / "pki/me.pem"),
        "/etc/me.key",
    )


def test_a_token_readable_by_others_gives_one_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "client.toml", 'server = "a"\ntoken = "secret-word"\n', 0o644)
    with caplog.at_level(logging.WARNING, "staddle"):
        load_settings(file, environment={})
        load_settings(file, environment={})
        load_settings(write(tmp_path / "good.toml", file.read_text()), environment={})
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} holds a token, and others can read it: chmod 600 it."
    ]


def test_no_variable_has_a_name_that_orchestrators_set() -> None:
    for name in FIELDS:
        variable = f"STADDLE_{name.upper()}"
        assert not variable.endswith("_PORT")
        assert "_SERVICE_" not in variable


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Unknown setting serve"):
        load_settings(environment={}, serve="a")


def test_the_token_is_in_no_repr() -> None:
    assert "hush" not in repr(load_settings(environment={}, server="a", token="hush"))


def test_importing_staddle_loads_nothing_heavy() -> None:
    program = (
        "import sys, staddle; "
        "heavy = {'click', 'rich', 'zstandard', 'pyfastcdc', 'pathspec', 'sqlalchemy', 'staddle_server', 'numpy'}; "
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
