"""Row locks are taken in one way, which does not block rows that refer to a locked one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import staddle_server

SERVER: Final = Path(staddle_server.__file__).parent
IN_SQL: Final = re.compile(
    r"\bFOR\s+(NO\s+KEY\s+)?UPDATE\b|\bFOR\s+(KEY\s+)?SHARE\b|\bLOCK\s+TABLE\b", re.IGNORECASE
)


def locks(source: str) -> Iterator[str]:
    """The functions of a module that lock rows, by SQLAlchemy or by SQL; "" for the module itself."""

    def walk(node: ast.AST, inside: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.Attribute) and node.attr == "with_for_update":
            yield inside
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and IN_SQL.search(node.value):
            yield inside
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(ast.parse(source), "")


def test_only_one_function_locks_rows() -> None:
    found = {
        f"{path.relative_to(SERVER)}: {function}"
        for path in SERVER.rglob("*.py")
        for function in locks(path.read_text())
    }
    assert found == {"catalog/database.py: locking"}


def test_a_lock_is_found_however_it_is_written() -> None:
    assert list(locks("def f():\n    return query.with_for_update()")) == ["f"]
    assert list(locks("Q = select(t).with_for_update(key_share=True)")) == [""]
    assert list(locks('def f():\n    text("SELECT 1 FROM packs FOR no key update")')) == ["f"]
    assert list(locks('text("SELECT row FROM packs ORDER BY row")')) == []
