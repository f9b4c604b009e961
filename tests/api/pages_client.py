"""A browser without a screen: it keeps cookies, follows redirects, and reads forms."""

from __future__ import annotations

import html
import re
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from http_door import Answer, ask

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Visitor:
    """Somebody who visits the pages at a port. Checks what every answer must have."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.cookies: dict[str, str] = {}
        if token:
            answer = self.log_in(token)
            assert answer.status == 303, answer.body

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask(path, None, headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> Answer:
        kind = {"content-type": "application/x-www-form-urlencoded"}
        return self._ask(path, urlencode(form).encode(), kind | headers)

    def page(self, path: str) -> str:
        """A page that there is."""
        answer = self.get(path)
        assert answer.status == 200, (answer.status, answer.headers.get("location"), answer.body[-2000:])
        return answer.body.decode()

    def log_in(self, token: str, wanted: str = "/") -> Answer:
        key = field_of(self.page("/login"), "key")
        return self.post("/login", {"key": key, "token": token, "next": wanted})

    def form_key(self) -> str:
        """What a form of this session has."""
        return field_of(self.page("/"), "key")

    def _ask(self, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = ask(self.port, path.partition("#")[0], body, headers)
        for line in answer.headers.get_all("set-cookie") or ():
            for name, cookie in SimpleCookie(line).items():
                assert cookie["httponly"]
                assert cookie["samesite"].lower() == "strict"
                assert cookie["path"] == "/"
                self.cookies[name] = cookie.value
                if cookie["max-age"] == "0":
                    del self.cookies[name]
        check_headers(answer)
        return answer


def check_headers(answer: Answer) -> None:
    """What every answer must have, once each."""
    policy = answer.headers.get_all("content-security-policy")
    is_download = "content-disposition" in answer.headers
    if answer.headers.get("content-type", "").startswith("text/html") and not is_download:
        assert policy == [POLICY]
    else:
        assert policy is not None
        assert "default-src 'none'" in policy[0]
    assert answer.headers.get_all("x-frame-options") == ["DENY"]
    assert answer.headers.get_all("x-content-type-options") == ["nosniff"]
    assert answer.headers.get_all("referrer-policy") == ["no-referrer"]
    assert len(answer.headers.get_all("cache-control") or ()) == 1


def field_of(page: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return html.unescape(found[1])


def text_of(page: str) -> str:
    """What a page says, without its markup."""
    body = page.partition("<main")[2].partition("</main>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", "<" + body)).split())
