"""`staddle status`: what needs somebody, and nothing else."""

import datetime
from collections import Counter

from staddle import Run, RunOutcome, Status, Trouble
from staddle._base import figures
from staddle.command import json_output, server_condition, text
from staddle.command.exit_codes import DONE, NEEDED
from staddle.command.options import Session, command
from staddle.command.output import Output
from staddle.command.runs import place, what
from staddle.command.tables import fit_columns

LATE, FAILED, PROBLEMS = "late", "failed", "problems"


@command("status", "Show which datasets need somebody.", "staddle status", "staddle status --json")
def status(session: Session) -> int:
    """Show one line for each dataset that needs somebody, the worst first: late, failed, or not backed up whole.

    What of the server itself needs somebody, such as known damage of stored data, has lines of its own. Exits with 0 if nobody is needed,
    and with 4 otherwise.
    """
    with session.connect() as client:
        found, about = client.status(), client.info()
    output, warnings = session.output, list(server_condition.warnings(about.condition))
    if output.as_json:
        for trouble in found.troubles:
            output.record({"concern": concern(trouble), **json_output.of_trouble(trouble)})
    else:
        _show(output, found, warnings, about.server_time)
    counts = Counter(map(concern, found.troubles))
    record = {
        "needed": bool(found.troubles or warnings),
        "dataset_count": found.dataset_count,
        "expected_count": found.expected_count,
        "muted_count": found.muted_count,
        **{each: counts[each] for each in (LATE, FAILED, PROBLEMS)},
        "oldest_success_time": None
        if found.oldest_success_time is None
        else text.rfc3339_of(found.oldest_success_time),
        "warnings": warnings,
    }
    output.summary("status", record, _summed_up(found, counts, about.server_time, warned=bool(warnings)))
    return NEEDED if found.troubles or warnings else DONE


def concern(trouble: Trouble) -> str:
    """The worst of what is wrong with a dataset, in a word."""
    if trouble.late_since is not None:
        return LATE
    return PROBLEMS if trouble.run is not None and trouble.run.outcome is RunOutcome.PROBLEMS else FAILED


def _show(output: Output, found: Status, warnings: list[str], now: datetime.datetime) -> None:
    rows = [(concern(each), text.escaped(each.dataset), _why(each, now)) for each in found.troubles]
    rows += [("server", "", warning) for warning in warnings]
    if rows:
        output.table(fit_columns(rows, output.width, names=range(1, 2)))


def _why(trouble: Trouble, now: datetime.datetime) -> str:
    run, parts = trouble.run, []
    if trouble.late_since is not None:
        parts.append(f"for {_age(trouble.late_since, now)}, {_newest(trouble, now)}")
    if run is not None and run.outcome is RunOutcome.PROBLEMS:
        parts.append(f"{_ago(run.end_time, now)}: {figures.counted(run.problem_count, 'path')} not read")
    elif run is not None:
        parts.append(f"{_word(trouble, run)}{_ago(run.end_time, now)} on {place(run)}: {what(run)}")
    return "; ".join(parts)


def _word(trouble: Trouble, run: Run) -> str:
    """How the run ended, unless the line has said so."""
    if run.outcome is RunOutcome.ABANDONED:
        return "abandoned "
    return "" if trouble.late_since is None else "failed "


def _newest(trouble: Trouble, now: datetime.datetime) -> str:
    if trouble.success_time is None:
        return "it never had a backup"
    return f"newest {_ago(trouble.success_time, now)}"


def _ago(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    return "now" if moment is None else f"{_age(moment, now)} ago"


def _age(moment: datetime.datetime, now: datetime.datetime) -> str:
    return figures.age(max(0.0, (now - moment).total_seconds()))


def _summed_up(found: Status, counts: Counter[str], now: datetime.datetime, *, warned: bool) -> str:
    muted = f" {found.muted_count:,} muted." if found.muted_count else ""
    datasets = figures.counted(found.dataset_count, "dataset")
    if found.troubles:
        words = ", ".join(f"{counts[each]:,} {each}" for each in (LATE, FAILED, PROBLEMS) if counts[each])
        need = figures.counted(len(found.troubles), "dataset needs", "datasets need")
        return f"{need} somebody: {words}.{muted}"
    if warned:
        return f"The server needs somebody; the datasets do not.{muted}"
    if found.oldest_success_time is None:
        return f"No backups yet: {datasets}.{muted}"
    oldest = f"newest backups at most {_age(found.oldest_success_time, now)} old"
    if not found.expected_count:
        return (
            f"Nothing failed: {datasets}, {oldest}. None is expected: `staddle expect DATASET --every 24h`."
        )
    return f"All well: {datasets}, {found.expected_count:,} of them expected; {oldest}.{muted}"
