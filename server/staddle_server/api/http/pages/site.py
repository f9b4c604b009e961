"""The dashboard's routes: who is logged in, which page they get, and what stands in an error's place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, quote

from staddle._base.printable import printable
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from staddle_server.api.answering import Method
from staddle_server.api.call_line import CallLine, free_frames, refusal_of
from staddle_server.api.error_table import code_of
from staddle_server.api.gate import Call, CallerGone, Gate
from staddle_server.api.http.connect import STATUSES, peer_of
from staddle_server.api.http.exchange import BodyTooLong, Exchange
from staddle_server.api.http.pages.attempts import Attempts
from staddle_server.api.http.pages.rendering import NavLink, Renderer
from staddle_server.api.http.pages.sessions import (
    LOGIN,
    SESSION,
    Login,
    Sessions,
    check_form,
    drop_cookie,
    has_cookie,
    login_key,
    new_login_key,
    set_cookie,
)
from staddle_server.api.http.pages.static_files import StaticFiles
from staddle_server.api.http.pages.visit import PageRoute, PageSources, Shown, Visit
from staddle_server.api.http.pages.words import Words
from staddle_server.api.http.rest.operations import Operation
from staddle_server.api.http.rest.serving import RestRoute
from staddle_server.api.slots import first
from staddle_server.base.call_ids import CALL_KEY
from staddle_server.base.errors import BadRequest, NotFound, StaddleError, Unauthenticated
from staddle_server.base.limits import FORM_BYTES_MAX

log = logging.getLogger(__name__)
NAME: Final = "Page"
"""What logs and metrics call the request of a page."""
FORM: Final = "application/x-www-form-urlencoded"
FIELDS_MAX: Final = 32
LOGIN_AGE_S: Final = 3600
GONE: Final = 499
REST: Final = "/v1/"
DOWNLOAD: Final = "/download/"
ARCHIVE: Final = "/archive"
SENDING: Final = ("/files/{path...}", ARCHIVE)
"""How the addresses of REST end that send files."""
HOME: Final = "/"

Answer = Callable[[Request, Exchange, CallLine], Response]


class Dashboard:
    """Serves the dashboard."""

    def __init__(
        self,
        gate: Gate,
        methods: Mapping[str, Method],
        sources: PageSources,
        *,
        pages: Sequence[PageRoute],
        links: Sequence[NavLink],
        threads: Executor,
    ) -> None:
        self._gate = gate
        self._methods = methods
        self._sources = sources
        self._pages = pages
        self._threads = threads
        self._sessions = Sessions(sources.catalog, sources.tenants, sources.now_ns)
        self._attempts = Attempts(sources.monotonic_s)
        self._files = StaticFiles()
        self._renderer = Renderer(self._files, links)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            self._files.route(),
            self._route("/login", "GET", self._login_page),
            self._route("/login", "POST", self._log_in),
            self._route("/logout", "POST", self._log_out),
            *(self._route(page.path, page.verb, self._page(page)) for page in self._pages),
        ]

    def downloads(self, addresses: Iterable[Operation]) -> RestRoute:
        """Return the addresses of REST that send files, for people who are logged in: a link carries no token."""
        mine = [
            each._replace(path=DOWNLOAD + each.path.removeprefix(REST))
            for each in addresses
            if each.verb == "GET" and each.path.endswith(SENDING)
        ]
        if any(each.path.endswith(ARCHIVE) for each in mine):
            self._renderer.offer_archives()
        return RestRoute(
            self._gate,
            mine,
            self._threads,
            principal_of=lambda request: self._sessions.find(request).principal,
            prefix=DOWNLOAD.encode(),
        )

    async def unknown(self, request: Request, error: Exception) -> Response:
        """Answer a request for an address that does not exist, or takes no such verb: people get a page."""
        assert isinstance(error, HTTPException)
        if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(error.detail, error.status_code, error.headers)
        # Where a form was sent to, somebody pressed Enter in the address bar.
        answer = _no_page if error.status_code == HTTPStatus.NOT_FOUND else _to_first_page
        return await self._respond(request, answer)

    def _route(self, path: str, verb: str, answer: Answer) -> Route:
        async def respond(request: Request) -> Response:
            return await self._respond(request, answer)

        return Route(path, respond, methods=[verb])

    async def _respond(self, request: Request, answer: Answer) -> Response:
        loop = asyncio.get_running_loop()
        exchange = Exchange(loop, request.receive)
        following = loop.create_task(exchange.follow())
        try:
            return await loop.run_in_executor(self._threads, self._answered, request, exchange, answer)
        finally:
            following.cancel()
            exchange.cancel()

    def _answered(self, request: Request, exchange: Exchange, answer: Answer) -> Response:
        line = CallLine(
            NAME,
            lambda: peer_of(request),
            logging.DEBUG if request.method == "GET" else logging.INFO,
            self._gate.observer,
        )
        try:
            response = self._ended(request, exchange, answer, line)
        finally:
            line.leave()
        response.headers[CALL_KEY] = line.id
        return response

    def _ended(self, request: Request, exchange: Exchange, answer: Answer, line: CallLine) -> Response:
        try:
            response = answer(request, exchange, line)
        except CallerGone:
            line.end("CANCELLED")
            return Response(status_code=GONE)
        except Unauthenticated as error:
            line.end(code_of(error).name, error)
            return self._to_login(request)
        except BodyTooLong:
            too_long = BadRequest("BAD_FIELD", "The form is too long", field="form")
            line.end("INVALID_ARGUMENT", too_long)
            return self._error_page(request, too_long)
        except Exception as e:  # noqa: BLE001 - nothing but a response leaves a handler
            refusal = refusal_of(e, NAME)
            line.end(code_of(refusal).name, refusal)
            response = self._error_page(request, refusal)
            free_frames(refusal)
            return response
        line.end("OK")
        return response

    # ------------------------------------------------------------------ pages

    def _page(self, page: PageRoute) -> Answer:
        def answer(request: Request, exchange: Exchange, line: CallLine) -> Response:
            session = self._sessions.find(request)
            gate, principal = self._gate, session.principal
            call = line.call = gate.admit_as(NAME, page.role, principal, exchange, stream=False)
            call.facts["page"] = page.path
            slot = gate.calls.enter(call, principal.token, principal.tenant, until_left=True)
            try:
                form = _form_of(request, exchange)
                call.check()
                slot.at_work()
                if page.verb == "POST":
                    check_form(form.get("key", ""), session.form_key)
                return self._shown(page, request, call, session, form)
            finally:
                gate.calls.leave(slot)

        return answer

    def _shown(
        self, page: PageRoute, request: Request, call: Call, session: Login, form: Mapping[str, str]
    ) -> Response:
        now_ns = self._sources.now_ns()
        visit = Visit(self._sources, self._methods, call, session, request.query_params, form, Words(now_ns))
        shown = page.view(visit)
        if isinstance(shown, Shown):
            server = self._sources.this_server()
            return self._renderer.response(
                shown.template, shown.values, now_ns, session=session, here=page.here, server=server
            )
        return shown

    def _error_page(self, request: Request, error: StaddleError) -> Response:
        code = code_of(error).name.lower()
        status = STATUSES["canceled" if code == "cancelled" else code]
        title = HTTPStatus(status).phrase if status != GONE else "Canceled"
        try:
            session = self._sessions.find(request)
        except StaddleError:
            session = None  # the page says what is wrong without it
        values = {"title": title, "message": error.message, "code": status}
        response = self._renderer.response(
            "error.html", values, self._sources.now_ns(), session=session, status=status
        )
        if error.retry_after_s is not None:
            response.headers["retry-after"] = str(int(error.retry_after_s) + 1)
        return response

    # ------------------------------------------------------------------ in and out

    def _to_login(self, request: Request) -> Response:
        """Ask who this is. A part of a page is asked for by a script: the page itself must be loaded again."""
        if "hx-request" in request.headers:
            return Response(status_code=401, headers={"hx-refresh": "true"})
        wanted = request.url.path if request.method == "GET" else HOME
        if request.method == "GET" and request.url.query:
            wanted += f"?{request.url.query}"
        there = "" if wanted == HOME else f"?next={quote(wanted, safe='')}"
        response = RedirectResponse(f"/login{there}", 303)
        # A link of another site brings no cookie: the session that the browser has is left alone.
        if has_cookie(request, SESSION):
            drop_cookie(request, response, SESSION)
        return response

    def _login_page(self, request: Request, _exchange: Exchange, _line: CallLine) -> Response:
        return self._login_form(request, request.query_params.get("next", HOME))

    def _login_form(self, request: Request, wanted: str, error: str = "", status: int = 200) -> Response:
        key = login_key(request) or new_login_key()
        values = {"key": key, "next": _local(wanted), "error": error}
        response = self._renderer.response("login.html", values, self._sources.now_ns(), status=status)
        set_cookie(request, response, LOGIN, key, LOGIN_AGE_S)
        return response

    def _log_in(self, request: Request, exchange: Exchange, line: CallLine) -> Response:
        form = _form_of(request, exchange)
        wanted = form.get("next", HOME)
        try:
            check_form(form.get("key", ""), login_key(request))
            self._attempts.count(request.client.host if request.client else "")
            principal = self._gate.principal_of(form.get("token", "").strip())
            response: Response = RedirectResponse(_local(wanted), 303)
            self._sessions.open(principal, request, response)
        except Unauthenticated as error:
            line.end(code_of(error).name, error)
            why = "This is not a valid token. It may have been revoked, or have expired."
            return self._login_form(request, wanted, why, 401)
        except StaddleError as error:
            line.end(code_of(error).name, error)
            code = STATUSES[code_of(error).name.lower()]
            return self._login_form(request, wanted, f"{error.message}.", code)
        return response

    def _log_out(self, request: Request, exchange: Exchange, _line: CallLine) -> Response:
        session = self._sessions.find(request)
        check_form(_form_of(request, exchange).get("key", ""), session.form_key)
        try:
            self._sessions.end(session)
        except StaddleError as error:
            # People can leave, too, while the catalog takes no writes.
            log.warning("a logout ended the session in one browser only: %s", error.message)
        response = RedirectResponse("/login", 303)
        drop_cookie(request, response, SESSION)
        return response


def _no_page(request: Request, _exchange: Exchange, _line: CallLine) -> Response:
    path = printable(request.url.path[:200])
    raise NotFound("PATH_NOT_FOUND", f"There is no page at {path}", path=path)


def _to_first_page(_request: Request, _exchange: Exchange, _line: CallLine) -> Response:
    return RedirectResponse(HOME, 303)


def _form_of(request: Request, exchange: Exchange) -> dict[str, str]:
    """Return the fields of a form. Raises BadRequest if it is too long, or is none."""
    body = first(exchange.messages(FORM_BYTES_MAX))
    if not body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise BadRequest("BAD_FIELD", "Send a form", field="form")
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise BadRequest(
            "BAD_FIELD", "The form has too many fields, or is not in UTF-8", field="form"
        ) from error
    return dict(fields)


def _local(wanted: str) -> str:
    """Return a path of this site: what a link says must not lead elsewhere after the login."""
    is_local = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted
    return wanted if is_local and wanted.isprintable() else HOME
