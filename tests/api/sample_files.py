"""A few files of several sizes, for backups."""

from thin import noise

FILES = {
    "a.txt": b"alpha",
    "d/b.bin": noise(3_000_000),
    "d/empty": b"",
    "d/text": b"the same line again and again\n" * 90_000,
    "z/y/x": b"deep",
}
