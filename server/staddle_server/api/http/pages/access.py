"""The page of who and what may do what: tokens, holds, policies, notification targets."""

from __future__ import annotations

from typing import Final

from staddle_server.api.http.pages.dataset import policy_words
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.base.clock import DAY_NS
from staddle_server.upkeep.lifecycle.retention import decode_policy

LISTED: Final = 200
"""Of each kind. More are counted."""
USED_DAYS: Final = 30


def access_page(visit: Visit) -> Shown:
    """Show tokens, holds, policies and targets, to an administrator."""
    catalog, tenant = visit.sources.catalog, visit.principal.tenant
    tokens = [token for token in catalog.tokens.list_all(tenant) if token.revoked_ns is None]
    states = catalog.deliveries.states()
    protected = catalog.overview.protected(tenant, LISTED)
    return Shown(
        "access.html",
        {
            "tokens": tokens[:LISTED],
            "more_tokens": max(0, len(tokens) - LISTED),
            "used": catalog.overview.last_runs(tenant, visit.now_ns - USED_DAYS * DAY_NS),
            "used_days": USED_DAYS,
            "datasets": protected,
            "policies": {
                each.name: policy_words(decode_policy(each.policy)) for each in protected if each.policy
            },
            "held": catalog.overview.held(tenant, LISTED),
            "listed": LISTED,
            "targets": [states.get(name) for name in sorted(visit.sources.targets())],
            "names": sorted(visit.sources.targets()),
            "tenant": visit.call.tenant,
        },
    )
