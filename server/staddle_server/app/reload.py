"""SIGHUP: what a running server updates from its settings and certificates without a restart."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

from staddle_server.app.notify_file import targets_of
from staddle_server.app.settings import OPTIONS, OperatorError, Settings
from staddle_server.app.tls import ServerCertificates
from staddle_server.base import logs
from staddle_server.store.space import Space
from staddle_server.upkeep.notify.delivery import AnyTarget

CHANGEABLE: Final = frozenset({"log_level", "min_free", "drain_s", "notify"})
"""The settings that a running server updates. docs/operations.md names them (a test compares)."""
_NAMES: Final = {option.field: option.name for option in OPTIONS}
_log = logging.getLogger(__name__)


class Reloading:
    """The current settings, and how they are read again. For one thread."""

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        space: Space,
        certificates: ServerCertificates | None,
    ) -> None:
        """`reread` returns the settings from their origin, and may raise OperatorError."""
        self.settings = settings
        self._reread = reread
        self._space = space
        self._certificates = certificates
        self._use_targets: Callable[[Sequence[AnyTarget]], None] | None = None

    def follow_targets(self, use: Callable[[Sequence[AnyTarget]], None]) -> None:
        """Hand the notification targets to `use`, now and at each reload.

        SettingsError: they are unusable now.
        """
        use(self._targets())
        self._use_targets = use

    def reload(self) -> None:
        """Read settings and certificates again. Unusable ones change nothing.

        The log reports the result; never raises.
        """
        if self._certificates is not None:
            self._certificates.look(again=True)
        try:
            read = self._reread()
        except OperatorError as error:
            _log.warning("SIGHUP: the settings are unusable, and the previous ones stay: %s", error)
            return
        changed = {
            field.name
            for field in dataclasses.fields(Settings)
            if getattr(read, field.name) != getattr(self.settings, field.name)
        }
        taken = changed & CHANGEABLE
        self.settings = dataclasses.replace(self.settings, **{name: getattr(read, name) for name in taken})
        logs.set_level(self.settings.log_level)
        self._space.keep(self.settings.min_free)
        _log.info(
            "SIGHUP: settings were read again", extra={"fields": {"changed": _listed(taken) or "nothing"}}
        )
        self._reload_targets()
        if waiting := _listed(changed - CHANGEABLE):
            _log.warning("SIGHUP: these settings have changed, and apply from the next start: %s", waiting)

    def _reload_targets(self) -> None:
        if self._use_targets is None:
            return
        try:
            self._use_targets(self._targets())
        except OperatorError as error:
            _log.warning(
                "SIGHUP: the notification targets are unusable, and the previous ones stay: %s", error
            )

    def _targets(self) -> list[AnyTarget]:
        return targets_of(self.settings.data, self.settings.notify, os.environ)

    def tick(self) -> None:
        """Called every second or so, for periodic work."""
        if self._certificates is not None:
            self._certificates.tick()


def _listed(fields: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(_NAMES[field] for field in fields))
