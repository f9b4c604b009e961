"""All commands of `staddle`, by their names."""

import click
from staddle.command.run import COMMANDS, command_named


def leaves(commands, *before: str) -> dict[str, click.Command]:
    """All commands with an action, by name."""
    found: dict[str, click.Command] = {}
    for command in commands:
        words = (*before, command.name)
        if isinstance(command, click.Group):
            found |= leaves(command.commands.values(), *words)
        else:
            found[" ".join(words)] = command
    return found


BY_NAME = leaves(map(command_named, COMMANDS))
