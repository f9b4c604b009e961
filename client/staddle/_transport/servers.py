"""Which server a call goes to: one of the addresses of the settings, and for a call of an upload the server that writes it.

All calls use one server until it fails (pick first, after a shuffle), so that many clients spread over the servers. Nothing that a server says
adds an address: a token goes only where the settings, and the look-up of a name in them, send it. `staddle._transport.retry.Attempts`
decides when a call moves on; this module knows where to. Without TLS nothing goes beyond this machine.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

import grpc

from staddle._base.figures import counted
from staddle._errors import CancelledError, ConfigError, ConnectError, StaddleError, UnavailableError
from staddle._transport.addresses import Address, addresses_of, expanded
from staddle._transport.channel import CONNECT_S, HEALTH, Channel, identity_of
from staddle._transport.rpc_errors import reason_of
from staddle._transport.settings import Settings
from staddle._transport.token import token_of

UPLOAD_KEY: Final = "staddle-upload"
"""In the metadata of each call of an upload, with the same value for all of them: a balancer hashes it."""
KEY_CHARACTERS_MAX: Final = 128
UPLOADS_MAX: Final = 1_000
"""Uploads whose server is remembered; one more forgets the oldest."""
QUESTIONS: Final = 3
"""So many questions in a row stay unanswered before a server is said to hang."""
NEARLY: Final = 0.9
"""The share of its time after which a failed question counts as unanswered: gRPC may report an attempt to connect as ended."""
HINTS_MAX: Final = 4
"""How often an upload's own answers may name another server: two that name each other must not move it for ever."""

_log = logging.getLogger("staddle")
Metadata = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Home:
    """Where an upload is written, and what its calls carry for a balancer."""

    address: Address
    key: str
    hints: int = 0


class Servers:
    """The servers of one service. Thread-safe.

    Raises ConfigError at once for settings that cannot be used: also for an address beyond this machine without TLS.
    """

    def __init__(self, settings: Settings, *, await_server: bool = False) -> None:
        """`await_server`: servers that have not answered yet are tried again like those that went away."""
        self.addresses: Final = addresses_of(settings.server)
        self._settings = settings
        self._identity = identity_of(settings, self.addresses)
        self._await_server = await_server
        self._metadata: Metadata = (("authorization", f"Bearer {token_of(settings.token)}"),)
        self._ring: tuple[Address, ...] = ()
        """All addresses, in the order in which they are tried; empty: not looked up."""
        self._order = random.sample(self.addresses, len(self.addresses))
        self._channels = {each: Channel(settings, each, self._identity) for each in self._order}
        self._first = self._channels[self._order[0]]
        self._current = self._order[0]
        self._answered: Address | None = None
        self._homes: dict[str, Home] = {}
        self._asking: set[Channel] = set()
        """Connections over which a server is asked whether it lives."""
        self._said: set[Address] = set()
        """Addresses whose failure was logged since they answered last."""

    @property
    def name(self) -> str:
        """All addresses of the settings, in an order of their own: the name of the service."""
        return ",".join(sorted(map(str, self.addresses)))

    @property
    def address(self) -> Address:
        """The address that answered last; before, the one that is asked first."""
        return self._answered or self._current

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._first.closed

    def sleep(self, seconds: float) -> None:
        """Waits. Raises CancelledError when the client is closed meanwhile."""
        self._first.sleep(seconds)

    def close(self) -> None:
        """Ends every call; see Channel.close."""
        for channel in [*self._channels.values(), *self._asking]:
            channel.close()

    # --- which one

    def channel(self, upload: str = "") -> Channel:
        """The connection for a call of this upload, or of none. Raises CancelledError when closed."""
        if self.closed:
            raise CancelledError("This client is closed.")
        self._look_up()
        home = self._homes.get(upload)
        return self._channels[home.address if home is not None else self._current]

    def metadata(self, upload: str = "") -> Metadata:
        """What a call carries: the token, and for a balancer the upload."""
        home = self._homes.get(upload)
        key = home.key if home is not None else upload
        if not 0 < len(key) <= KEY_CHARACTERS_MAX or not key.isascii() or not key.isalnum():
            return self._metadata
        return (*self._metadata, (UPLOAD_KEY, key))

    @property
    def is_one(self) -> bool:
        """Whether there is one address, so that a failed call has nowhere else to go."""
        return len(self._ring or self._order) == 1

    @property
    def count(self) -> int:
        """How many addresses there are to be tried."""
        return len(self._ring or self._order)

    def _look_up(self) -> None:
        """Looks up the names, once until all addresses have failed. Two threads may do it at once: the last one's order holds."""
        if self._ring:
            return
        found = [each for address in self._order for each in expanded(address)]
        if len(found) > len(self._order):
            random.shuffle(found)
        for each in found:
            if each not in self._channels:
                channel = self._channels.setdefault(each, Channel(self._settings, each, self._identity))
                if self.closed:
                    channel.close()
        if self._current not in found:
            self._current = found[0]
        self._ring = tuple(found)

    def find(self, endpoint: str) -> Address | None:
        """The address that a server names, if it is one of ours. What a server says is not believed, and not connected to."""
        try:
            place = Address.parse(endpoint).place
        except ConfigError:
            return None
        return next((each for each in self._ring or self._order if each.place == place), None)

    # --- what became of a call

    def answered(self, channel: Channel) -> None:
        """Notes that a server gave an answer, be it an error."""
        channel.was_ready = True
        self._answered = channel.address
        self._said.discard(channel.address)

    def hangs(self, address: Address) -> bool:
        """Whether a server that owes an answer leaves questions after its health unanswered as well, while there are other servers.

        Each question has a connection of its own: the others may be full of data. A refused one says nothing about calls in flight.
        """
        return not self.is_one and all(self._is_dumb(address) for _ in range(QUESTIONS))

    def _is_dumb(self, address: Address) -> bool:
        asked = Channel(self._settings, address, self._identity)
        self._asking.add(asked)
        begun_s = monotonic()
        try:
            if not self.closed:
                asked.method(HEALTH)(b"", timeout=CONNECT_S)
        except grpc.RpcError:
            return not self.closed and monotonic() - begun_s >= CONNECT_S * NEARLY
        except (CancelledError, ValueError):
            return False  # closed meanwhile
        finally:
            self._asking.discard(asked)
            asked.close()
        return False

    def leave(self, error: StaddleError, tried: Collection[str]) -> None:
        """After a failure of a server: what used it goes to one that is not among the `tried` addresses."""
        failed = next((each for each in self._channels if str(each) == error.address), None)
        if failed is None or self.is_one:
            return
        self._channels[failed].is_checked = False
        ring = self._ring or tuple(self._order)
        start = ring.index(failed) + 1 if failed in ring else 0
        after = [*ring[start:], *ring[:start]]
        better = next((each for each in after if str(each) not in tried), after[0])
        if str(self._current) in tried:
            self._current = better
        home = self._homes.get(error.upload)
        if home is not None and str(home.address) in tried:
            home.address = better
        if failed not in self._said and len(tried) < len(ring):
            self._said.add(failed)
            _log.warning(
                "The server at %s does not serve (%s). Continuing with the server at %s.",
                failed, reason_of(error), better,
            )  # fmt: skip

    def look_up_again(self) -> None:
        """After all addresses have failed: the names may stand for others now."""
        if any(each.name for each in self._ring) or any(each.has_name for each in self.addresses):
            self._ring = ()

    def may_reconnect(self, error: StaddleError) -> bool:
        """False where no server ever answered: waiting would only hide a wrong address, unless it was asked for."""
        if not isinstance(error, ConnectError) or any(each.was_ready for each in self._channels.values()):
            return True
        return self._await_server and "tls" not in error.facts

    # --- uploads

    def redirect(self, upload: str, address: Address) -> None:
        """Another server writes this upload, or takes the call: that is asked next."""
        home = self._homes.get(upload)
        if home is not None:
            home.address = address
        elif not upload:
            self._current = address
        else:
            self._remember(upload, Home(address, upload))

    def settle(self, upload: str, channel: Channel, endpoint: str, *, key: str = "", writes: bool) -> None:
        """A server has answered about an upload. `writes`: it is the one that writes it, since it began it or took it over.

        `endpoint`: the server's own word on who writes it. `key`: what the call that began it carried.
        """
        home = self._homes.get(upload) or Home(channel.address, key or upload)
        if writes:
            home.address, home.key = channel.address, key or home.key
        named = self.find(endpoint) if endpoint else None
        if named is not None and named != home.address and home.hints < HINTS_MAX:
            home.address, home.hints = named, home.hints + 1
        self._remember(upload, home)

    def _remember(self, upload: str, home: Home) -> None:
        self._homes[upload] = home
        while len(self._homes) > UPLOADS_MAX:
            self._homes.pop(next(iter(self._homes)), None)


def all_failed(errors: Mapping[str, StaddleError]) -> StaddleError:
    """One error for all servers, by address, of which each has failed."""
    last = [*errors.values()][-1]
    if len(errors) == 1:
        return last
    each = ", ".join(f"{address} ({reason_of(error)})" for address, error in errors.items())
    kind = type(last) if len({type(error) for error in errors.values()}) == 1 else UnavailableError
    reason = last.reason if len({error.reason for error in errors.values()}) == 1 else ""
    waits = [error.retry_after_s for error in errors.values() if error.retry_after_s is not None]
    facts = {"address": ",".join(errors)}
    if all("tls" in error.facts for error in errors.values()):
        facts["tls"] = last.facts["tls"]
    joined = kind(
        f"None of {counted(len(errors), 'server')} answers: {each}.",
        reason=reason,
        facts=facts,
        retry_after_s=min(waits, default=None),
    )
    joined.__cause__ = last
    return joined
