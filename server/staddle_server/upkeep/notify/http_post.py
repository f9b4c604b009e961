"""One HTTP POST, with the standard library: it needs no more than this, and each bound is visible here.

No redirect is followed, no proxy is used, and of the answer only the status counts.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from staddle_server import __version__
from staddle_server.upkeep.notify.attempt import Attempt, TargetError, reasons

ANSWER_BYTES_MAX: Final = 4096
SHOWN_CHARS: Final = 120
URL_CHARS_MAX: Final = 2000


class HttpUrl(NamedTuple):
    """The parts of a URL. Its path may be a secret, so it never appears in a message."""

    is_tls: bool
    host: str
    port: int
    path: str
    """With the query, if it has one."""

    def __repr__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.host}:{self.port}/…"

    @property
    def host_header(self) -> str:
        """The host as in a URL, with a port that is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    def below(self, part: str) -> HttpUrl:
        """Return the URL with a further component behind its path."""
        path, mark, query = self.path.partition("?")
        return self._replace(path=f"{path.rstrip('/')}/{part}{mark}{query}")


def parse_http_url(text: str) -> HttpUrl:
    """Parse a URL. Raises ValueError, which repeats no part of it."""
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > URL_CHARS_MAX:
        raise ValueError("expected a URL of printable ASCII characters, without spaces")
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected https://HOST/PATH or http://HOST/PATH")
    if parts.username is not None:
        raise ValueError("a URL with a user name is not supported")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is not a number from 0 to 65535") from None
    is_tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpUrl(is_tls, parts.hostname, port or (443 if is_tls else 80), path)


def post(
    url: HttpUrl, body: bytes, headers: Mapping[str, str], context: ssl.SSLContext | None, attempt: Attempt
) -> None:
    """Send a body; return once a status from 200 to 299 arrived. Raises TargetError.

    `context` verifies the certificate; None: against the system's authorities.
    """
    with reasons(attempt, url.host):
        connection = http.client.HTTPConnection(url.host, url.port)
        try:
            connection.sock = attempt.connect(url.host, url.port)
            if url.is_tls:
                trust = context or ssl.create_default_context()
                connection.sock = attempt.secured(connection.sock, trust, url.host)
            sent = {"Host": url.host_header, "User-Agent": f"staddle-server/{__version__}", **headers}
            connection.request("POST", url.path, body, {**sent, "Connection": "close"})
            answer = connection.getresponse()
            attempt.left_s()  # what was cut looks like the end of the headers
            said = _said(answer)
        except OSError:
            raise  # some of TLS are ValueErrors, too
        except (http.client.HTTPException, ValueError) as error:
            if attempt.was_cut:
                raise attempt.late() from error
            raise TargetError(f"{url.host} does not answer as HTTP does ({type(error).__name__})") from error
        finally:
            connection.close()
    if 300 <= answer.status < 400:
        raise TargetError(
            f"{url.host} answers {answer.status}, a redirect, which is not followed: set the URL that it leads to"
        )
    if not 200 <= answer.status < 300:
        raise TargetError(f"{url.host} answers {answer.status}" + (f": {said}" if said else ""))


def _said(answer: http.client.HTTPResponse) -> str:
    """Return the beginning of what comes with a refusal; of a success nothing is read."""
    with answer:
        if 200 <= answer.status < 300:
            return ""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return answer.read(ANSWER_BYTES_MAX).decode("utf-8", "replace").strip()[:SHOWN_CHARS]
    return ""
