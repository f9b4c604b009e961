"""The files that pages load: styles and scripts, ours and the vendored ones. All come from this server."""

from __future__ import annotations

import gzip
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

DIRECTORY: Final = Path(__file__).parent / "static"
TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FOREVER: Final = "public, max-age=31536000, immutable"


class _StaticFile(NamedTuple):
    data: bytes
    packed: bytes
    media_type: str
    tag: str


class StaticFiles:
    """Serves them from memory. Addresses change with the content, so browsers keep each file for good."""

    def __init__(self) -> None:
        self._files = {
            path.name: _StaticFile(data, gzip.compress(data, mtime=0), TYPES[path.suffix], _tag(data))
            for path in sorted(DIRECTORY.iterdir())
            if path.suffix in TYPES
            for data in [path.read_bytes()]
        }

    def url(self, name: str) -> str:
        """Return the address of a file."""
        return f"/static/{name}?v={self._files[name].tag}"

    def route(self) -> Route:
        """Return their route."""
        return Route("/static/{name}", self.respond, methods=["GET"])

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            return Response("Not Found", 404, media_type="text/plain")
        # What an older page asks for may have changed since.
        is_current = request.query_params.get("v") == found.tag
        headers = {"vary": "accept-encoding", "cache-control": FOREVER if is_current else "no-cache"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(
                found.packed, headers=headers | {"content-encoding": "gzip"}, media_type=found.media_type
            )
        return Response(found.data, headers=headers, media_type=found.media_type)


def _tag(data: bytes) -> str:
    return sha256(data).hexdigest()[:12]
