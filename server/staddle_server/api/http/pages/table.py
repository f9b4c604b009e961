"""Every page, with the least role that it is shown to, and the links at the top."""

from typing import Final

from staddle_server.api.http.pages.access import access_page
from staddle_server.api.http.pages.actions import act
from staddle_server.api.http.pages.browse import browse_page, compare_page, file_page
from staddle_server.api.http.pages.dataset import dataset_page
from staddle_server.api.http.pages.datasets import datasets_page
from staddle_server.api.http.pages.history import events_page, runs_page
from staddle_server.api.http.pages.now import now_page
from staddle_server.api.http.pages.rendering import NavLink
from staddle_server.api.http.pages.search import search_page
from staddle_server.api.http.pages.store import store_page
from staddle_server.api.http.pages.visit import PageRoute
from staddle_server.base.types import TokenRole

READER, ADMIN = TokenRole.READER, TokenRole.ADMIN
PAGES: Final = (
    PageRoute("/", READER, now_page, "/"),
    PageRoute("/datasets", READER, datasets_page, "/datasets"),
    PageRoute("/dataset", READER, dataset_page, "/datasets"),
    PageRoute("/browse", READER, browse_page, "/datasets"),
    PageRoute("/file", READER, file_page, "/datasets"),
    PageRoute("/search", READER, search_page, "/datasets"),
    PageRoute("/compare", READER, compare_page, "/datasets"),
    PageRoute("/runs", READER, runs_page, "/runs"),
    PageRoute("/events", READER, events_page, "/events"),
    PageRoute("/store", READER, store_page, "/store"),
    PageRoute("/access", ADMIN, access_page, "/access"),
    PageRoute("/do", ADMIN, act, "/datasets", "POST"),
)
LINKS: Final = (
    NavLink("Now", "/"),
    NavLink("Datasets", "/datasets"),
    NavLink("Runs", "/runs"),
    NavLink("Events", "/events"),
    NavLink("Store", "/store"),
    NavLink("Access", "/access", ADMIN),
)
