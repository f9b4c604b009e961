"""The paths with which something went wrong, each named."""

from collections.abc import Iterable
from typing import Final

from staddle import PathProblem, ProblemKind
from staddle.command._output import Output
from staddle.command._records import of_problem
from staddle.command._words import escaped, one_line

WORDS: Final = {
    ProblemKind.UNREADABLE: "not read",
    ProblemKind.CHANGED: "kept changing",
    ProblemKind.SKIPPED: "left out",
    ProblemKind.DAMAGED: "damaged",
    ProblemKind.NOT_WRITTEN: "not written",
    ProblemKind.DIFFERENT: "different",
}


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
