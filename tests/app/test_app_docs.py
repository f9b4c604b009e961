"""docs/operations.md and server/deploy describe exactly what exists."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import staddle_server
from click.testing import CliRunner
from staddle._base.figures import duration_s
from staddle.v1 import errors_pb2
from staddle_server.app import settings_reading as config
from staddle_server.app.settings import OPTIONS
from staddle_server.base import limits
from staddle_server.cli.run import COMMANDS, group
from staddle_server.upkeep.lifecycle.planning import PLANS_MAX

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "operations.md").read_text()
DEPLOY = TOP / "server" / "deploy"


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands with an action, by name."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None, name
        found += leaves(below, (*path, name))
    return found


ALL = leaves(group)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory."""
    path = tmp_path_factory.mktemp("figures") / "d"
    assert CliRunner().invoke(group, ["init", "--data", str(path)]).exit_code == 0
    return path


def test_every_setting_is_in_the_table_with_its_flag_variable_key_and_default() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `--")]
    expected = []
    for option in OPTIONS:
        metavar = option.metavar.replace("|", "\\|")
        default = option.default
        expected.append([f"`--{option.name} {metavar}`", f"`{option.variable}`", f"`{option.key}`", default])
    assert [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:5]] for row in rows] == expected


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_and_option_is_documented(path: tuple[str, ...], command: click.Command) -> None:
    assert f"staddle-server {' '.join(path)}" in PAGE
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert any(name in PAGE for name in parameter.opts), parameter.opts
            assert parameter.help, parameter.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name: str) -> None:
    done = CliRunner().invoke(group, [name, "--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.output


def test_help_fits_a_terminal_of_eighty_columns() -> None:
    commands = [((), group), *ALL]
    wide = [
        line
        for path, command in commands
        for line in command.get_help(
            click.Context(command, info_name=" ".join(("staddle-server", *path)), terminal_width=80)
        ).splitlines()
        if len(line) > 80
    ]
    assert wide == []


def test_every_error_reason_is_explained_for_the_operator_on_call() -> None:
    table = PAGE[PAGE.index("## At 3 a.m.") :]
    documented = {
        word
        for line in table.splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`([A-Z_]+)`", line.split("|")[1])
    }
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118  not a dict
    assert documented == reasons


def test_the_numbers_in_the_page_are_the_limits() -> None:
    assert f"at most {limits.UPLOADS_OPEN_MAX} uploads" in PAGE
    assert f"{limits.UPLOADS_OPEN_MAX} open uploads (" in PAGE
    assert (
        f"or {limits.CALLS_MAX} calls ({limits.CALLS_TENANT_MAX} of one tenant, {limits.CALLS_TOKEN_MAX} of one token)"
        in PAGE
    )
    assert f"{PLANS_MAX} retention plans" in PAGE


def test_commands_in_the_page_parse() -> None:
    examples = re.findall(r"^(?:.*/)?staddle-server (.+(?:\\\n.+)*)$", PAGE, re.MULTILINE)
    assert len(examples) >= 9
    for example in examples:
        words = example.replace("\\\n", " ").split()
        matching = [(path, command) for path, command in ALL if tuple(words[: len(path)]) == path]
        assert matching, example
        path, command = matching[0]
        rest = [word for word in words[len(path) :] if word != "…"]
        command.make_parser(click.Context(command)).parse_args(rest)


FIGURES = {
    "DURATION": "5 fortnights",
    "PERCENT": "101",
    "[=PERCENT]": "101",
    "SIZE": "1Q",
    "auto|SIZE|PERCENT%": "101%",
}
"""What options of each kind refuse."""


@pytest.mark.parametrize(
    ("path", "option"),
    [
        (path, option)
        for path, command in ALL
        for option in command.params
        if isinstance(option, click.Option) and option.metavar in FIGURES
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else each.opts[0],
)
def test_an_invalid_number_is_refused_with_the_option_and_the_expected_form(
    path: tuple[str, ...], option: click.Option, data: Path
) -> None:
    flag, text = option.opts[0], FIGURES[str(option.metavar)]
    arguments = {"tenant set": ["default"], "token create": ["--role", "reader"]}.get(" ".join(path), [])
    done = CliRunner().invoke(group, [*path, *arguments, f"--data={data}", f"{flag}={text}"])
    assert done.exit_code == 2
    assert re.search(rf"{flag}.*{re.escape(repr(text))}: (use|expected) ", done.output), done.output


def test_an_impossibly_long_life_of_a_token_is_refused(data: Path) -> None:
    done = CliRunner().invoke(
        group, ["token", "create", f"--data={data}", "--role", "reader", "--expires", "99999w"]
    )
    assert done.exit_code == 2
    assert "--expires is '99999w': it is too long, use at most 36600d" in done.output


# --- server/deploy


def variables_in(text: str) -> set[str]:
    return set(re.findall(r"STADDLED_[A-Z_]+", text))


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile",
        "compose.yaml",
        "staddle-server.service",
        "cluster/compose.yaml",
        "chart/values.yaml",
        "chart/templates/deployment.yaml",
        "chart/templates/NOTES.txt",
    ],
)
def test_deployment_files_use_variables_and_commands_that_exist(name: str) -> None:
    text = (DEPLOY / name).read_text()
    known = {option.variable for option in OPTIONS} | {config.CONFIG_VARIABLE}
    assert variables_in(text) <= known
    for flag in re.findall(r"staddle-server [a-z ]*?((?: ?--[a-z-]+(?: [^-\s;]\S*)?)+)", text):
        used = set(re.findall(r"--[a-z-]+", flag))
        assert used <= {opt for _, command in ALL for parameter in command.params for opt in parameter.opts}
    for command in re.findall(r"staddle-server ([a-z]+)", text):
        assert command in COMMANDS


def test_the_settings_of_the_image_allow_listening_beyond_loopback() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    block = text[text.index("ENV PATH") :].split("\nUSER")[0]
    environment = dict(re.findall(r"(STADDLED_[A-Z_]+)=(\S+)", block))
    settings = config.load({}, environment)
    assert not settings.listen.is_loopback
    assert settings.tls_cert is not None
    assert (settings.data, settings.log_format) == (Path("/data"), "json")
    assert f"EXPOSE {settings.listen.port}" in text
    health = re.search(r"HEALTHCHECK .* CMD (.+) \|\| test \$\? -eq 4\n", text)
    assert health is not None
    words = shlex.split(health[1])
    command = dict(ALL)[(words[1],)]
    command.make_parser(click.Context(command)).parse_args(words[2:])


def test_the_settings_of_the_service_are_valid_and_stopping_waits_longer_than_draining() -> None:
    lines = (DEPLOY / "staddle-server.service").read_text().splitlines()
    values = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    environment = dict(value.split("=", 1) for key, value in values if key == "Environment")
    settings = config.load({}, environment)
    stop = next(value for key, value in values if key == "TimeoutStopSec")
    assert duration_s(stop) > settings.drain_s
    assert settings.data == Path("/var/lib") / next(value for key, value in values if key == "StateDirectory")
    start = next(value for key, value in values if key == "ExecStart").split()
    assert start[0].endswith("/staddle-server")
    assert tuple(start[1:]) in dict(ALL)


@pytest.mark.parametrize("name", ["compose.yaml", "cluster/compose.yaml"])
def test_the_compose_file_gives_more_time_to_stop_than_to_drain(name: str) -> None:
    text = (DEPLOY / name).read_text()
    drain = re.search(r"STADDLED_DRAIN: (\S+)", text)
    grace = re.search(r"stop_grace_period: (\S+)", text)
    assert drain is not None
    assert grace is not None
    assert duration_s(grace[1]) > duration_s(drain[1])


def test_the_chart_has_the_version_of_the_server() -> None:
    chart = (DEPLOY / "chart" / "Chart.yaml").read_text()
    assert f'appVersion: "{staddle_server.__version__}"' in chart
    assert f"\nversion: {staddle_server.__version__}\n" in chart


# --- dependencies


def test_the_oldest_versions_that_ci_tests_are_those_that_the_package_allows() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        each for extra in project["optional-dependencies"].values() for each in extra
    ]
    floors = dict(
        re.match(r"([a-z0-9-]+)(?:\[[a-z]+\])?>=([0-9.]+)", each).groups()
        for each in wanted
        if not each.startswith("staddle")
    )
    pinned = dict(
        line.split("==") for line in (TOP / ".ci" / "oldest.txt").read_text().splitlines() if "==" in line
    )

    def version(text: str) -> list[int]:
        numbers = [int(part) for part in text.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert {name: version(text) for name, text in pinned.items()} == {
        name: version(text) for name, text in floors.items()
    }
