"""`staddle backup --dry-run`: what a backup would send, shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from staddle import Amount, BackupPlan, PlannedChange, PlannedPath
from staddle._base import figures
from staddle._types.options import SourceArguments
from staddle.command import json_output, text
from staddle.command.exit_codes import DONE, INCOMPLETE
from staddle.command.options import Session
from staddle.command.output import BATCH_ROWS, Output
from staddle.command.problems import tell_notes, tell_problems
from staddle.command.progress import watched

LETTERS: Final = {PlannedChange.NEW: "+", PlannedChange.CHANGED: "~", PlannedChange.REMOVED: "-"}


def plan(
    session: Session,
    paths: Sequence[str],
    dataset: str,
    arguments: SourceArguments,
    *,
    verbose: bool,
) -> int:
    """Shows what a backup would do; answers the exit code."""
    output = session.output
    names = _PathRows(output)
    with session.connect() as client, watched(output) as progress:
        made = client.plan_backup(
            paths,
            dataset=dataset,
            each=names.take if verbose or output.as_json else None,
            progress=progress,
            **arguments,
        )
    names.flush()
    tell_notes(output, made.notes)
    tell_problems(output, made.problems, made.warnings)
    output.summary("backup", _record_of(made), _summed_up(made))
    return DONE if made.complete else INCOMPLETE


class _PathRows:
    """Writes paths, some hundred at a time."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows: list[tuple[str]] = []

    def take(self, planned: PlannedPath) -> None:
        if self._output.as_json:
            sized = {} if planned.change is PlannedChange.REMOVED else {"size_bytes": planned.size_bytes}
            self._output.record(
                {"change": planned.change.value, **json_output.name("path", planned.path_bytes), **sized}
            )
            return
        self._rows.append((f"{LETTERS[planned.change]} {text.escaped(planned.path_bytes) or './'}",))
        if len(self._rows) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        self._output.table(self._rows)
        self._rows = []


def _record_of(made: BackupPlan) -> json_output.Record:
    return {
        "dry_run": True,
        "dataset": made.dataset,
        "kind": made.kind.value,
        "base_backup_id": None if made.base is None else made.base.id,
        "complete": made.complete,
        "problem_count": len(made.problems),
        "note_count": len(made.notes),
        "warnings": list(made.warnings),
        **{name: _of_amount(getattr(made, name)) for name in ("new", "changed", "removed", "unchanged")},
        "excluded_entries": made.excluded_entries,
        "seconds": round(made.seconds, 3),
    }


def _of_amount(amount: Amount) -> json_output.Record:
    return {"entries": amount.entries, "data_bytes": amount.data_bytes}


def _shown(amount: Amount) -> str:
    return f"{amount.entries:,} ({figures.size(amount.data_bytes)})"


def _summed_up(made: BackupPlan) -> str:
    start = "" if made.base is None else f" from {text.short_id(made.base.id)}"
    to_read = made.new.data_bytes + made.changed.data_bytes
    parts = [
        f"Would back up to {text.escaped(made.dataset)} ({made.kind.value}{start}): {_shown(made.new)} new",
        f"{_shown(made.changed)} changed",
        f"{_shown(made.removed)} removed",
        f"{_shown(made.unchanged)} unchanged",
        f"{made.excluded_entries:,} left out",
        f"{figures.size(to_read)} to read, of which what the server lacks would be sent",
        text.seconds(made.seconds),
    ]
    words = "; ".join(parts)
    if made.problems:
        words += f"; {figures.counted(len(made.problems), 'path', 'paths')} could not be backed up whole"
    return words + ". Nothing was sent."
