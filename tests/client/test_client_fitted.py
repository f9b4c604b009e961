"""Lines that fit a terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle._base.terminal import fitted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def forty_columns():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "40")
        yield


WORDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=60))


@given(WORDS, st.integers(0, 4))
def test_a_line_is_broken_between_words_and_loses_none(words: list[str], margin: int) -> None:
    line = " " * margin + " ".join(words)
    shown = fitted(line, Terminal())
    assert shown.split() == words
    first, *rest = shown.splitlines() or [""]
    assert all(len(each) <= 40 or len(each.split()) == 1 for each in (first, *rest))
    assert all(each.startswith(" " * (margin + 2)) for each in rest)


def test_short_lines_and_lines_to_a_file_or_pipe_are_unchanged() -> None:
    assert fitted("  a  short   line", Terminal()) == "  a  short   line"
    assert fitted("word " * 40, io.StringIO()) == "word " * 40
    assert fitted("", Terminal()) == ""


def test_a_terminal_of_unknown_width_has_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", columns)
        assert max(map(len, fitted("word " * 40, Terminal()).splitlines())) == 79
