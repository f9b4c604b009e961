"""The command `staddle-server`, as operators type it."""

import io
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from staddle_server import __version__, cli

COMMAND = Path(sys.executable).parent / "staddle-server"


class Done(NamedTuple):
    """The exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_installed(*arguments: object) -> Done:
    """The installed command, without the settings of the user who runs the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STADDLED_")}
    words = [COMMAND, *map(str, arguments)]
    done = subprocess.run(words, env=clean, capture_output=True, text=True, timeout=60, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def run(*arguments: object, env: dict[str, str] | None = None) -> Done:
    """The same command in this process, which is faster."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [each for each in os.environ if each.startswith("STADDLED_")]:
            patch.delenv(name)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["staddle-server", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0 if code is None else 1, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory made by `init`."""
    path = tmp_path_factory.mktemp("data") / "d"
    done = run("init", "--data", path)
    assert done.returncode == 0, done.stderr
    return path


def test_the_version_is_that_of_the_package() -> None:
    name, version, build = run_installed("--version").stdout.split(maxsplit=2)
    assert (name, version) == ("staddle-server", __version__)
    assert re.fullmatch(r"\(Python 3\.\d+\.\S+, (an optimised build|built without optimisation)\)\n", build)


def test_init_creates_the_directory_and_says_what_it_created_and_what_to_keep(tmp_path: Path) -> None:
    done = run_installed("init", "--data", tmp_path / "d")
    assert done.returncode == 0
    assert 'the tenant "default"' in done.stdout
    assert f"Keep a copy of {tmp_path}/d/master.key" in done.stdout
    assert f"staddle-server serve --data {tmp_path}/d" in done.stdout
    assert stat.S_IMODE((tmp_path / "d" / "client.toml").stat().st_mode) == 0o600


def test_init_of_an_existing_or_foreign_directory_changes_nothing(data: Path, tmp_path: Path) -> None:
    before = (data / "client.toml").read_bytes()
    again = run("init", "--data", data)
    assert (again.returncode, again.stdout) == (1, "")
    assert "nothing was changed" in again.stderr
    assert (data / "client.toml").read_bytes() == before
    (tmp_path / "thesis.odt").touch()
    foreign = run("init", "--data", tmp_path)
    assert foreign.returncode == 1
    assert "is not empty and is not a Staddle data directory" in foreign.stderr


def test_tenants_are_created_and_listed(data: Path) -> None:
    assert run("tenant", "create", "acme", "--data", data).returncode == 0
    again = run("tenant", "create", "acme", "--data", data)
    assert (again.returncode, again.stderr) == (1, "Error: Tenant 'acme' exists already\n")
    listed = [
        json.loads(line) for line in run("tenant", "list", "--json", "--data", data).stdout.splitlines()
    ]
    assert {each["name"] for each in listed} == {"acme", "default"}
    heading, *rows = run("tenant", "list", "--data", data).stdout.splitlines()
    assert heading.split() == ["name", "id", "created", "grace", "collection"]
    assert len(rows) == 2


def test_a_token_is_printed_once_alone_on_standard_output_and_listed_without_its_text(data: Path) -> None:
    made = run("token", "create", "--role", "writer", "--name", "web1", "--data", data)
    assert re.fullmatch(r"staddle_[A-Za-z0-9_-]{43}\n", made.stdout)
    assert "shown only once" in made.stderr
    listed = run("token", "list", "--data", data, "--json").stdout
    assert made.stdout.strip() not in listed
    rows = {row["name"]: row for row in map(json.loads, listed.splitlines())}
    assert (rows["web1"]["role"], rows["web1"]["state"]) == ("writer", "good")
    revoked = run("token", "revoke", "web1", "--data", data)
    assert revoked.stdout == "Revoked the token web1 of default.\n"
    rows = {
        row["name"]: row
        for row in map(json.loads, run("token", "list", "--data", data, "--json").stdout.splitlines())
    }
    assert rows["web1"]["state"] == "revoked"
    assert run("token", "revoke", "web1", "--data", data).returncode == 1


def test_a_token_may_be_for_another_tenant_and_for_a_time(data: Path) -> None:
    run("tenant", "create", "timed", "--data", data)
    made = run(
        "token",
        "create",
        "--role",
        "reader",
        "--tenant",
        "timed",
        "--expires",
        "90d",
        "--json",
        "--data",
        data,
    )
    assert json.loads(made.stdout).items() >= {"role": "reader", "tenant": "timed"}.items()
    (row,) = [
        json.loads(line)
        for line in run("token", "list", "--tenant", "timed", "--json", "--data", data).stdout.splitlines()
    ]
    assert row["expires"] > row["created"]
    missing = run("token", "create", "--role", "reader", "--tenant", "nobody", "--data", data)
    assert missing.returncode == 1
    assert "tenant 'nobody'" in missing.stderr


def test_the_data_directory_may_come_from_the_environment(data: Path) -> None:
    assert run("tenant", "list", env={"STADDLED_DATA": f'"{data}"\r'}).returncode == 0


def test_administration_of_a_missing_directory_says_how_to_create_it(tmp_path: Path) -> None:
    done = run_installed("tenant", "list", "--data", tmp_path / "absent")
    assert done.returncode == 1
    assert f"staddle-server init --data {tmp_path}/absent" in done.stderr
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--lisen", "127.0.0.1:0"], "--listen"),
        (["serve"], "--data DIR, STADDLED_DATA"),
        (["serve", "--data", "x", "--listen", "0.0.0.0:1"], "which needs TLS"),
        (["serve", "--data", "x", "--streams-max", "many"], "--streams-max is 'many'"),
        (["token", "create"], "--role"),
        (["tokens"], "No such command"),
        (["cert"], "--dir"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(tmp_path: Path, arguments: list[str], says: str) -> None:
    directory = str(tmp_path / "d")
    done = run(*[directory if each == "x" else each for each in arguments])
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(directory).exists()


def test_a_wrong_master_key_or_a_broken_file_is_a_clear_error(data: Path, tmp_path: Path) -> None:
    run("init", "--data", tmp_path / "d")
    (tmp_path / "d" / "master.key").write_text("not a key\n")
    done = run("tenant", "list", "--data", tmp_path / "d")
    assert done.returncode == 1
    assert "is not a master key" in done.stderr
    assert "Traceback" not in done.stderr


def test_cert_creates_authority_server_and_client_certificates_and_says_how_to_use_them(
    tmp_path: Path,
) -> None:
    made = run("cert", "--dir", tmp_path / "tls", "--host", "backup.example.org")
    assert made.returncode == 0
    assert f"--tls-cert {tmp_path}/tls/server.crt --tls-key {tmp_path}/tls/server.key" in made.stdout
    clients = run("cert", "--dir", tmp_path / "tls", "--client", "web1")
    assert f"--tls-client-ca {tmp_path}/tls/ca.crt" in clients.stdout
    names = {"ca.crt", "ca.key", "server.crt", "server.key", "client-web1.crt", "client-web1.key"}
    assert {path.name for path in (tmp_path / "tls").iterdir()} == names
    again = run("cert", "--dir", tmp_path / "tls")
    assert again.returncode == 1
    assert "is never overwritten" in again.stderr


def test_health_reports_that_no_server_answers(data: Path) -> None:
    free = run("health", "--data", data, "--server", "127.0.0.1:1", "--timeout", "2s")
    assert free.returncode == 1
    assert "no answer from 127.0.0.1:1" in free.stderr


def test_unsupported_platforms_are_refused_with_the_supported_ones() -> None:
    assert cli.refusal("linux", "x86_64") is None
    assert cli.refusal("linux", "aarch64") is None
    for system, machine in (("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")):
        said = cli.refusal(system, machine) or ""
        assert "Linux on x86_64 and aarch64" in said
        assert system in said


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(
        SystemExit, match=r"needs the Python package sqlalchemy.*pip install 'staddle\[server\]'"
    ):
        cli.missing(ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy"))
    with pytest.raises(ModuleNotFoundError):
        cli.missing(ModuleNotFoundError("No module named 'staddle_server.x'", name="staddle_server.x"))


def test_the_client_file_names_the_address_and_nothing_that_the_client_does_not_know(data: Path) -> None:
    assert set(tomllib.loads((data / "client.toml").read_text())) == {"server", "token"}


@pytest.mark.parametrize("command", ["init", "serve"])
def test_with_missing_certificates_nothing_is_created(tmp_path: Path, command: str) -> None:
    env = {"STADDLED_TLS_CERT": str(tmp_path / "no.crt"), "STADDLED_TLS_KEY": str(tmp_path / "no.key")}
    done = run(command, "--data", tmp_path / "d", env=env)
    assert done.returncode == 1
    assert "cannot read" in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} <= {"d", "server.lock"}


def test_a_closed_pipe_is_not_reported_as_an_error(data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        words = [str(Path(sys.executable).with_name("staddle-server")), "token", "list", "--data", str(data)]
        done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("flag", "url"),
    [
        ("--replicate-to", "s3://AKIA:sesame@bucket/x"),
        ("--replicate-to", "s3://bucket/x?secret=sesame"),
        ("--traces", "htp://user:sesame@collector/v1/traces"),
        ("--listen", "http://user:sesame@host:80"),
    ],
)
def test_no_setting_repeats_a_url_that_may_have_a_password(tmp_path: Path, flag: str, url: str) -> None:
    refused = run_installed("serve", "--data", tmp_path / "new", flag, url)
    assert refused.returncode == 2
    assert f"{flag} is something else: " in refused.stderr
    assert "sesame" not in refused.stderr
    assert not (tmp_path / "new").exists()
