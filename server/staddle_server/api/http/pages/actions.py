"""What forms of the dashboard change: each through the handler of the RPC that does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from staddle.v1 import service_pb2 as sv
from starlette.responses import RedirectResponse, Response

from staddle_server.api.http.pages.visit import Visit
from staddle_server.base.errors import BadRequest

Form = Mapping[str, str]


class Action(NamedTuple):
    """Something that a form can do: the method, the request for it, and what to say afterwards."""

    method: str
    request: Callable[[Form], Any]
    done: str


def _named(form: Form) -> dict[str, str]:
    return {"dataset": form.get("dataset", ""), "backup": form.get("backup", "")}


ACTIONS: Final = {
    "hold": Action(
        "SetHold",
        lambda form: sv.SetHoldRequest(**_named(form), reason=form.get("reason", "")),
        "The legal hold is in place.",
    ),
    "release": Action(
        "ReleaseHold", lambda form: sv.ReleaseHoldRequest(**_named(form)), "The legal hold is released."
    ),
    "delete": Action(
        "DeleteBackup",
        lambda form: sv.DeleteBackupRequest(**_named(form)),
        "The backup is deleted, and can be undeleted until its grace period is over.",
    ),
    "undelete": Action(
        "UndeleteBackup", lambda form: sv.UndeleteBackupRequest(**_named(form)), "The backup is back."
    ),
}


def act(visit: Visit) -> Response:
    """Do what a form asks for, and show its dataset again."""
    name = visit.form.get("action", "")
    action = ACTIONS.get(name)
    if action is None:
        raise BadRequest("BAD_FIELD", f"There is no action {name[:40]!r}", field="action")
    call = visit.call
    call.facts["does"] = action.method
    visit.methods[action.method].handler(action.request(visit.form), call)
    dataset = quote(visit.form.get("dataset", ""), safe="")
    return RedirectResponse(f"/dataset?name={dataset}&done={name}#backups", 303)


def done_words(visit: Visit) -> str:
    """Return what to say about the action that led here; empty for none."""
    action = ACTIONS.get(visit.query.get("done", ""))
    return "" if action is None else action.done
