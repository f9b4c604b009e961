"""An S3 endpoint that lists names and keeps nothing: as many as asked for, page by page. As a program: lists them all, and
prints by how many bytes the process has grown: python listing_store.py PORT FEW MANY.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from bisect import bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
ITEM = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag><Size>1</Size></Contents>"


def name_of(number: int) -> str:
    """A pack of tenant 00…: spread over 256 directories, as ids are."""
    digits = f"{number % 256:02x}{number:030x}"
    return f"packs/{bytes(16).hex()}/{digits[:2]}/{digits}"


class Names(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 of the bucket, named after how many objects it has."""

    protocol_version = "HTTP/1.1"
    names: dict[int, list[str]] = {}  # noqa: RUF012 - shared by all requests

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        count = int(url.path.strip("/"))
        names = self.names.setdefault(count, sorted(map(name_of, range(count))))
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = max(asked.get("start-after", ""), asked.get("continuation-token", ""))
        items: list[str] = []
        at = bisect_right(names, max(prefix, after))
        last = ""
        while at < len(names) and len(items) < PAGE and names[at].startswith(prefix):
            last = names[at]
            below, found, _ = last[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                last = f"{prefix}{below}/\x7f"
                items.append(f"<CommonPrefixes><Prefix>{prefix}{below}/</Prefix></CommonPrefixes>")
                at = bisect_right(names, last)
            else:
                items.append(ITEM.format(last))
                at += 1
        more = at < len(names) and names[at].startswith(prefix)
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{count}</Name><IsTruncated>{str(more).lower()}</IsTruncated>'
            f"{f'<NextContinuationToken>{last}</NextContinuationToken>' if more else ''}{''.join(items)}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def serve() -> ThreadingHTTPServer:
    """The endpoint, which `serve_forever` of it runs."""
    return ThreadingHTTPServer(("127.0.0.1", 0), Names)


def _peak_bytes() -> int:
    with open("/proc/self/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    from staddle_server.store.open import open_blobs

    port, few, many = sys.argv[1:]
    environ = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
    }
    with tempfile.TemporaryDirectory() as spool:
        counts = []
        peaks = []
        for count in (few, many):
            blobs = open_blobs(f"s3://{count}?endpoint=http://127.0.0.1:{port}", environ, spool)
            counts.append(sum(1 for _ in blobs.list("packs")))
            peaks.append(_peak_bytes())
    print(*counts, peaks[1] - peaks[0])


if __name__ == "__main__":
    main()
