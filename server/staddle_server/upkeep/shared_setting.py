"""A setting that belongs to the installation, not to one server: the server that started last decides."""

from __future__ import annotations

import logging
from typing import Final

from staddle_server.base.clock import Clock
from staddle_server.catalog import Catalog
from staddle_server.catalog.settings import SettingInForce
from staddle_server.upkeep.held_lease import holder_name

log = logging.getLogger(__name__)

PARITY_PERCENT: Final = "parity_percent"
SCRUB_PERIOD_S: Final = "scrub_period_s"


class SharedSetting:
    """One setting, with this server's own value until another server starts."""

    def __init__(self, catalog: Catalog, clock: Clock, name: str, own: int) -> None:
        """Let `own`, with which this server was started, hold from now on."""
        self._catalog = catalog
        self._name = name
        self._own = own
        catalog.settings.put(name, own, holder_name(), clock.now_ns())
        self._said = own

    def in_force(self) -> SettingInForce:
        """Return the value that holds now; log it once if it is not this server's own."""
        now = self._catalog.settings.get(self._name)
        if now.value != self._said:
            self._said = now.value
            log.warning(
                "%s is %d for all servers, as set by %s, which started last; this server was started with %d. Start all "
                "servers with the same settings",
                self._name,
                now.value,
                now.holder,
                self._own,
            )
        return now
