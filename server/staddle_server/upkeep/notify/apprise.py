"""Services that the library Apprise knows, in a process of its own: the library sets no limit of its own on
how long a service may take.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from staddle_server.upkeep.notify.attempt import Attempt
from staddle_server.upkeep.notify.command import environment, run_child
from staddle_server.upkeep.notify.notice import Notice, body_of, subject_of
from staddle_server.upkeep.notify.targets import TIMEOUT_S, Filter

CHILD = "staddle_server.upkeep.notify.apprise_child"


@dataclass(frozen=True)
class Apprise:
    """One URL of Apprise, which is a secret. All messages that are due go in one."""

    kind: ClassVar[str] = "apprise"
    most: ClassVar[int] = 20
    name: str
    filter: Filter
    url: str = field(repr=False)
    timeout_s: float = TIMEOUT_S

    def send(self, notices: Sequence[Notice], attempt: Attempt, now_ns: int) -> None:  # noqa: ARG002 - a target's
        """Send one message. TargetError."""
        given = {"url": self.url, "title": f"Staddle: {subject_of(notices)}", "body": body_of(notices)}
        # Without -P, a file in the working directory could take a module's place.
        run_child(
            "Apprise", [sys.executable, "-P", "-m", CHILD], json.dumps(given).encode(), environment(), attempt
        )
