"""Messages form the noun after a count with `counted`, to avoid "1 packs"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[1]
SOURCES: Final = (TOP / "client" / "staddle", TOP / "server" / "staddle_server")
PLURAL: Final = re.compile(r" (?:(?:more|open|further|other|lost|extended|deleted) )?([a-z]+s)\b")
VERBS: Final = frozenset(
    [
        "answers",
        "as",
        "belongs",
        "changes",
        "collects",
        "contains",
        "counts",
        "does",
        "ends",
        "exists",
        "expires",
        "goes",
        "has",
        "holds",
        "is",
        "its",
        "keeps",
        "leads",
        "leaves",
        "lies",
        "means",
        "mixes",
        "names",
        "needs",
        "passes",
        "refers",
        "refuses",
        "reports",
        "says",
        "serves",
        "shows",
        "speaks",
        "stands",
        "stays",
        "streams",
        "takes",
        "this",
        "us",
        "uses",
        "was",
        "writes",
    ]
)
OF_FORMATS: Final = frozenset({"blocks", "bytes", "inodes", "rows", "zeros"})
"""Sizes of what is stored and sent, which are not 1 in a message that a person can see."""


def counts_without_their_noun(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the words after each value before a plural, in f-strings and log formats, except constant limits."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and (logged := re.search(r"%d( ([a-z]+s)\b.*)", str(node.value))):
            if logged[2] in VERBS:
                continue
            yield node.lineno, logged[1]
        if isinstance(node, ast.JoinedStr):
            for value, words in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(words, ast.Constant):
                    found = PLURAL.match(str(words.value))
                    if found is None or found[1] in VERBS | OF_FORMATS:
                        continue
                    if not ast.unparse(value.value).rpartition(".")[2].isupper():
                        yield value.lineno, str(words.value)


def test_no_message_forms_a_plural_without_counted() -> None:
    found = [
        f"{path.relative_to(TOP)}:{line}: {words!r}"
        for source in SOURCES
        for path in sorted(source.rglob("*.py"))
        if "v1" not in path.parts
        for line, words in counts_without_their_noun(ast.parse(path.read_text()))
    ]
    assert found == []


def test_such_a_message_is_found() -> None:
    source = "f'{n} packs are gone', f'{n:,} more paths', f'{count(n)} of them', f'{limits.N_MAX} entries', f'{x} is y', '%d calls'"
    assert [words for _, words in counts_without_their_noun(ast.parse(source))] == [
        " packs are gone",
        " more paths",
        " calls",
    ]
