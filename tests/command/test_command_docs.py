"""docs/command.md describes exactly the existing commands and options."""

import re
import shlex
from pathlib import Path

import click
import pytest
from command_tree import BY_NAME
from staddle.command import exit_codes
from staddle.command.options import CONNECTION_FIELDS
from staddle.command.run import COMMANDS, command_named, group

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "command.md").read_text()


COMMON = {"--json", "--config", "--retry", *(f"--{field.replace('_', '-')}" for field in CONNECTION_FIELDS)}


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def documented(text: str) -> set[str]:
    """The options of a section's table."""
    return {
        flag
        for row in re.findall(r"^\| `(-[^|]*)\|", text, re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", row)
    }


def options_of(command: click.Command) -> set[str]:
    return {
        name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts
    }


@pytest.mark.parametrize("name", BY_NAME)
def test_every_command_has_its_section_with_exactly_its_options(name: str) -> None:
    assert documented(section(f"staddle {name}")) == options_of(BY_NAME[name]) - COMMON


def test_the_options_of_all_commands_are_in_a_separate_section() -> None:
    assert documented(section("Options of every command")) == COMMON
    for command in BY_NAME.values():
        assert options_of(command) >= COMMON


@pytest.mark.parametrize("name", BY_NAME)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = BY_NAME[name]
    assert command.help
    assert command.short_help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
    assert "Usage: " in command.get_help(click.Context(command, info_name=name))


def test_no_section_describes_a_missing_command() -> None:
    assert set(re.findall(r"^## staddle (.+)$", PAGE, re.MULTILINE)) == set(BY_NAME)


def test_the_exit_codes_are_those_of_the_code() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    assert codes == {
        value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)
    }


def test_the_page_warns_that_the_token_is_visible() -> None:
    assert "`ps`" in section("Options of every command")
    token = next(each for each in BY_NAME["list"].params if each.name == "token")
    assert isinstance(token, click.Option)
    assert token.help
    assert "`ps`" in token.help


def test_every_example_is_valid() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown = [
        line
        for command in BY_NAME.values()
        for line in (command.help or "").splitlines()
        if line.startswith("  ")
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + shown
    examples = [
        found[0]
        for line in lines
        if (found := re.search(rf"\bstaddle ({'|'.join(map(re.escape, BY_NAME))})\b.*", line))
    ]
    assert len(examples) > 50
    for example in examples:
        words = shlex.split(example.partition(" | ")[0].partition(" > ")[0], comments=True)
        depth = 2 if words[1] in BY_NAME else 3
        name, arguments = " ".join(words[1:depth]), words[depth:]
        with BY_NAME[name].make_context(name, arguments):
            pass


def test_every_command_is_in_the_main_help() -> None:
    shown = group.get_help(click.Context(group, info_name="staddle"))
    for command in map(command_named, COMMANDS):
        assert f"  {command.name} " in shown
        assert command.short_help in shown


def test_help_fits_a_terminal_of_eighty_columns() -> None:
    wide = [
        line
        for name, command in {"": group, **BY_NAME}.items()
        for line in command.get_help(
            click.Context(command, info_name=f"staddle {name}".strip(), terminal_width=80)
        ).splitlines()
        if len(line) > 80
    ]
    assert wide == []
