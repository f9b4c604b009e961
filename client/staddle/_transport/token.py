"""Tokens as people paste them."""

import re
from typing import Final

from staddle._base.given_files import INVISIBLE, unquoted
from staddle._errors import ConfigError

_TOKEN: Final = re.compile(r"staddle_[A-Za-z0-9_-]{43}")
_BEFORE_TOKEN: Final = re.compile(
    r"(?i)(?:export\s+)?(?:staddle_token\s*=|token\s*=|(?:authorization\s*:\s*)?bearer(?:\s|$))\s*"
)


def token_of(text: str) -> str:
    """A token as it was meant: also with `Bearer` or the variable's name before it, or wrapped over lines.

    Raises ConfigError for what cannot be one; its message never repeats what was given.
    """
    text = unquoted(text)
    if (before := _BEFORE_TOKEN.match(text)) is not None:
        text = unquoted(text[before.end() :])
    squeezed = "".join(text.translate(dict.fromkeys(map(ord, INVISIBLE))).split())
    if _TOKEN.fullmatch(squeezed):
        return squeezed
    if text and text.isascii() and text.isprintable() and " " not in text and "/" not in text:
        return text
    if text.startswith(("/", "./", "../", "~/")):
        why = "It looks like the path of a file: set what is in the file"
    else:
        why = "It is empty or holds characters that no token has"
    raise ConfigError(
        f"The token cannot be used. {why}; a token is one word that `staddle-server token create` prints."
    )
