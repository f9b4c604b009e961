"""Alarms of datasets: backups that are late, failed, or lack something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from staddle._base.figures import counted, duration

from staddle_server.base.types import RunOutcome
from staddle_server.catalog import Alarm, BackupRun, Troubled
from staddle_server.catalog.validation import utc_minute
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.kinds import CRITICAL, WARNING, alarm

RUNS: Final = "Look at `staddle runs` for this dataset"


class TroubledDatasets:
    """The datasets of all tenants that need somebody."""

    kinds: Final = frozenset({kinds.LATE.name, kinds.FAILED.name, kinds.PROBLEMS.name})

    def __init__(self, troubled: Callable[[], Iterable[Troubled]]) -> None:
        """`troubled` returns them, each once."""
        self._troubled = troubled

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - all servers know the same
        """Yield one alarm for each that is late, and one for each whose last run failed or lacks something."""
        for each in self._troubled():
            if each.late_since_ns is not None:
                yield _late(each, each.late_since_ns)
            if each.run is not None:
                yield _of_run(each, each.run)


def _late(found: Troubled, since_ns: int) -> Alarm:
    newest = (
        f"its newest backup is of {utc_minute(found.success_ns)}"
        if found.success_ns
        else "it never had a backup"
    )
    every = f", and one is expected every {duration(found.expectation.every_s)}" if found.expectation else ""
    return alarm(
        kinds.LATE,
        CRITICAL,
        f"The dataset {found.dataset} of tenant {found.tenant_name} is late: {newest}{every}.",
        f"Check that its client still runs. {RUNS}; to change what is expected, use `staddle expect`.",
        tenant=found.tenant_name,
        subject=found.dataset,
        since_ns=since_ns,
    )


def _of_run(found: Troubled, run: BackupRun) -> Alarm:
    where = f" on {run.host}" if run.host else ""
    since_ns = run.begin_ns if run.end_ns is None else run.end_ns
    if run.outcome is RunOutcome.PROBLEMS:
        kind, advice = kinds.PROBLEMS, f"{RUNS}, and at what its client printed."
        text = (
            f"The newest backup of the dataset {found.dataset} of tenant {found.tenant_name}{where} is incomplete: "
            f"{counted(run.problem_count, 'problem')}."
        )
    else:
        kind, advice = kinds.FAILED, f"{RUNS}, then back up again."
        ended = "was abandoned" if run.outcome is RunOutcome.ABANDONED else "failed"
        why = f": {run.reason.rstrip('.')}" if run.reason else ""
        text = f"A backup of the dataset {found.dataset} of tenant {found.tenant_name}{where} {ended}{why}."
    return alarm(
        kind, WARNING, text, advice, tenant=found.tenant_name, subject=found.dataset, since_ns=since_ns
    )
