"""Forms of values on the command line."""

import pytest
from staddle.command._options import BYTES_MAX, size_bytes


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
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        size_bytes(text)
