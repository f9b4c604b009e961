"""The paths with which something went wrong, each named."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from staddle import PathProblem, ProblemKind
from staddle._base.figures import counted
from staddle.command.json_output import of_note, of_problem
from staddle.command.output import Output
from staddle.command.text import escaped, one_line

NOTES_SHOWN_MAX: Final = 20
"""So many of a kind are shown in words; --json has all."""
WORDS: Final = {
    ProblemKind.UNREADABLE: "not read",
    ProblemKind.CHANGED: "kept changing",
    ProblemKind.ALTERED: "stored differently",
    ProblemKind.SKIPPED: "left out",
    ProblemKind.VANISHED: "vanished",
    ProblemKind.DAMAGED: "damaged",
    ProblemKind.NOT_WRITTEN: "not written",
    ProblemKind.NOT_DELETED: "not deleted",
    ProblemKind.DIFFERENT: "different",
}


def tell_notes(output: Output, notes: Iterable[PathProblem]) -> None:
    """Paths that a backup leaves out by intention."""
    shown: Counter[ProblemKind] = Counter()
    for note in notes:
        shown[note.kind] += 1
        if output.as_json:
            output.record(of_note(note))
        elif shown[note.kind] <= NOTES_SHOWN_MAX:
            path = escaped(note.path_bytes) or "./"
            output.notice(f"note: {WORDS[note.kind]}: {path}: {one_line(note.message)}")
    if not output.as_json:
        for kind, count in shown.items():
            if count > NOTES_SHOWN_MAX:
                output.notice(f"note: {WORDS[kind]}: {counted(count - NOTES_SHOWN_MAX, 'more path')}")


def tell_problems(output: Output, problems: Iterable[PathProblem], warnings: Iterable[str]) -> None:
    """As results under --json; in words to standard error."""
    for problem in problems:
        if output.as_json:
            output.record(of_problem(problem))
        else:
            path = escaped(problem.path_bytes) or "./"
            output.error_line(f"{WORDS[problem.kind]}: {path}: {one_line(problem.message)}")
    if not output.as_json:
        for warning in warnings:
            output.notice(f"warning: {warning}")
