"""Templates into answers. Everything that a template is given is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from staddle_server import __version__
from staddle_server.api.http.pages import drawings
from staddle_server.api.http.pages.sessions import Login
from staddle_server.api.http.pages.static_files import StaticFiles
from staddle_server.api.http.pages.words import Words
from staddle_server.base.types import TokenRole

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TEMPLATES: Final = Path(__file__).parent / "templates"


class NavLink(NamedTuple):
    """A link at the top of every page, shown to tokens with this role or a higher one."""

    title: str
    path: str
    role: TokenRole = TokenRole.READER


class Renderer:
    """Renders templates."""

    def __init__(self, files: StaticFiles, links: Sequence[NavLink]) -> None:
        self._links = links
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(
            static=files.url, version=__version__, draw=drawings, has_archives=False
        )

    def offer_archives(self) -> None:
        """Have pages link to archives of directories, because this server sends them."""
        self._templates.globals["has_archives"] = True

    def response(
        self,
        template: str,
        values: Mapping[str, Any],
        now_ns: int,
        *,
        session: Login | None = None,
        here: str = "",
        server: str = "",
        status: int = 200,
    ) -> Response:
        """Return a page; `here` is the path of the link that it belongs to, `server` the one that made it, where
        there are several.
        """
        role = TokenRole.MONITOR if session is None else session.principal.role
        text = self._templates.get_template(template).render(
            values,
            w=Words(now_ns),
            session=session,
            role=role.name.lower(),
            is_admin=role is TokenRole.ADMIN,
            links=[link for link in self._links if role >= link.role],
            here=here,
            server=server,
        )
        return HTMLResponse(text, status, {"content-security-policy": POLICY})
