"""What a page is made from: where it reads, who asks, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from starlette.datastructures import QueryParams
from starlette.responses import Response

from staddle_server.api.answering import Method
from staddle_server.api.gate import Call
from staddle_server.api.http.pages.sessions import Login
from staddle_server.api.http.pages.words import Words
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Catalog, Principal
from staddle_server.restore.browse import Reads
from staddle_server.store.space import Space
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.condition import Conditions
from staddle_server.upkeep.lifecycle.policies import Policies
from staddle_server.upkeep.lifecycle.runs import RunHistory


class PageSources(NamedTuple):
    """Where pages read.

    Attributes:
        catalog: What is stored, and what happened.
        tenants: Their keys.
        reads: Reads backups.
        runs: Attempts to back up, and who needs somebody.
        policies: Retention.
        conditions: The condition of this server.
        space: The disks; None where the store is elsewhere.
        this_server: What names this server where several share the catalog, also in samples of its disks; empty for a
            single one.
        certificate_ends: When the certificate expires, in seconds since 1970; None without TLS.
        scrub_period_s: Within what time the scrub reads everything; 0: there is none.
        events_work: Whether this server's watch for events works.
        targets: The names of this server's notification targets.
        now_ns: The time.
        monotonic_s: The time that only grows.

    """

    catalog: Catalog
    tenants: Tenants
    reads: Reads
    runs: RunHistory
    policies: Policies
    conditions: Conditions
    space: Space | None
    this_server: Callable[[], str]
    certificate_ends: Callable[[], float] | None
    scrub_period_s: float
    events_work: Callable[[], bool]
    targets: Callable[[], frozenset[str]]
    now_ns: Callable[[], int]
    monotonic_s: Callable[[], float]


class Visit(NamedTuple):
    """One request of somebody who is logged in.

    Attributes:
        sources: Where the page reads.
        methods: The methods of the service, which do what forms ask for.
        call: The call that the gate admitted.
        session: Who asks.
        query: The parameters of the address.
        form: The fields of the form that was sent; empty for none.
        words: Writes figures.

    """

    sources: PageSources
    methods: Mapping[str, Method]
    call: Call
    session: Login
    query: QueryParams
    form: Mapping[str, str]
    words: Words

    @property
    def principal(self) -> Principal:
        """Who asks."""
        return self.call.principal

    @property
    def now_ns(self) -> int:
        """The time of the request."""
        return self.words.now_ns

    @property
    def is_admin(self) -> bool:
        """Whether this is an administrator of the tenant."""
        return self.principal.role is TokenRole.ADMIN


class Shown(NamedTuple):
    """A page: its template, and what the template shows."""

    template: str
    values: Mapping[str, Any]


class PageRoute(NamedTuple):
    """An address of the dashboard.

    Attributes:
        path: Its path.
        role: The least role that it is shown to.
        view: Makes it.
        here: The path of the link at the top that it belongs to.
        verb: How it is asked for: a POST is a form that changes something.

    """

    path: str
    role: TokenRole
    view: Callable[[Visit], Shown | Response]
    here: str
    verb: str = "GET"
