"""Names as printable text."""

from typing import Final

_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def printable(text: str) -> str:
    r"""A text that shows this one, and no other: `\n`, `\x1b`, `\xff` (a byte that is not UTF-8), `\u202e`, and `\\` for a backslash."""
    if "\\" not in text and text.isprintable():
        return text
    return "".join(map(escaped_letter, text))


def escaped_letter(letter: str) -> str:
    """A letter, or what stands for it if it is a backslash or not printable."""
    if letter in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[letter]
    if letter.isprintable():
        return letter
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
