"""Every page, with the least role that it is shown to, and the links at the top."""

from typing import Final

from staddle_server.api.http.pages.now import now_page
from staddle_server.api.http.pages.rendering import NavLink
from staddle_server.api.http.pages.visit import PageRoute
from staddle_server.base.types import TokenRole

READER, ADMIN = TokenRole.READER, TokenRole.ADMIN
PAGES: Final = (PageRoute("/", READER, now_page, "/"),)
LINKS: Final = (NavLink("Now", "/"),)
