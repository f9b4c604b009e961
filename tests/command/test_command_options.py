"""Forms of values on the command line."""

import click
import pytest
from command_tree import BY_NAME
from staddle._base.figures import BYTES_MAX
from staddle.command.options import size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        (" 500 ", 500),
        ("500b", 500),
        ("1k", 1024),
        ("1 KiB", 1024),
        ("1kb", 1024),
        ("20M", 20 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("0.5k", 512),
        ("2t", 2 * 1024**4),
        ("123456789012345679", 123_456_789_012_345_679),
        (str(BYTES_MAX), BYTES_MAX),
    ],
)
def test_a_size_is_exact_and_its_units_are_binary(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "k",
            "-1",
            "-1k",
            "+5",
            "0.5",
            "1.9b",
            "1,5G",
            "1e3",
            "0x10",
            "1_000",
            "inf",
            "nan",
            "1P",
            "5bytes",
            "1ib",
        ),
        *("\uff11", str(BYTES_MAX + 1), "8388608T", "9" * 30),
    ],
)
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        size_bytes(text)


BY_METAVAR = {
    "TIME": ("2026-01-01T00:00+25:00", "invalid time"),
    "DURATION": ("5 fortnights", "invalid duration"),
    "SIZE": ("1Q", "invalid size"),
    "PERCENT": ("101", "invalid percentage"),
    "A:B": ("4:3", "invalid range"),
    "N": ("many", "invalid number"),
    "UNTIL": ("some day", "invalid time"),
}
"""What options of each kind refuse, and how the refusal begins."""


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, option)
        for command in BY_NAME.values()
        for option in command.params
        if isinstance(option, click.Option) and option.metavar in BY_METAVAR
    ],
    ids=lambda each: each.name,
)
def test_every_numeric_or_time_option_names_its_error(command: click.Command, option: click.Option) -> None:
    text, begins = BY_METAVAR[str(option.metavar)]
    with pytest.raises(click.BadParameter) as refused:
        option.process_value(click.Context(command), text)
    assert refused.value.message.startswith(f"{begins} '{text}': ")


def test_the_table_of_kinds_has_every_numeric_or_time_metavar() -> None:
    of_other_kinds = {
        "CERT", "COMMAND", "DATASET", "DIR", "FILE", "HOST:PORT|unix:PATH", "ID", "K=V", "K[=V]", "KIND", "NAME",
        "PATTERN", "TEXT", "TOKEN", "ZONE",
    }  # fmt: skip
    metavars = {
        option.metavar
        for command in BY_NAME.values()
        for option in command.params
        if isinstance(option, click.Option) and option.metavar is not None
    }
    assert metavars - of_other_kinds == set(BY_METAVAR)
