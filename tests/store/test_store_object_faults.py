"""An object store behind a network that fails: a real S3 server, and a real proxy that cuts, loses, refuses and delays."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from seaweed import S3Server
from staddle_server.base.errors import Exhausted, Unavailable
from staddle_server.base.threads import Threads
from staddle_server.store.backends import object_store, object_urls
from staddle_server.store.backends.object_errors import NO_RANGE, failure_of
from staddle_server.store.backends.object_probe import UnsafeStore, check
from staddle_server.store.backends.object_store import PATIENCE_S, ObjectBlobs
from staddle_server.store.backends.object_urls import PROBES
from staddle_server.store.blobs import BlobExists, BlobMissing, BlobShort
from staddle_server.store.open import open_blobs
from tcp_proxy import Proxy, once, status

pytestmark = pytest.mark.xdist_group("s3")

DATA = bytes(range(256)) * 40


class Waits:
    """Pauses that take no time, on a clock that they move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    made = Proxy(s3.port)
    yield made
    made.stop()


@pytest.fixture
def waits() -> Waits:
    return Waits()


Opening = Callable[..., ObjectBlobs]


@pytest.fixture
def opening(s3: S3Server, tmp_path: Path, waits: Waits) -> Opening:
    """Opens one prefix by the endpoints given."""
    prefix = f"tests/{uuid.uuid4().hex}"

    def open_by(*endpoints: str) -> ObjectBlobs:
        blobs = open_blobs(s3.url(prefix, *endpoints), os.environ, str(tmp_path))
        assert isinstance(blobs, ObjectBlobs)
        return ObjectBlobs(
            blobs.place, blobs.endpoints, str(tmp_path), pause=waits.pause, now_s=lambda: waits.now_s
        )

    return open_by


@pytest.fixture
def direct(opening: Opening) -> ObjectBlobs:
    """The store without the proxy."""
    return opening()


@pytest.fixture
def blobs(opening: Opening, proxy: Proxy) -> ObjectBlobs:
    """The store through the proxy."""
    return opening(proxy.endpoint)


def requests(proxy: Proxy, method: str) -> int:
    return sum(line.startswith(f"{method} ") for line in proxy.requests)


# --- reading


def test_an_answer_that_is_cut_in_the_middle_is_asked_for_again(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    direct.put("a", DATA)
    proxy.harm(once("GET", lambda answer: answer[:-5000]))
    assert blobs.read("a", 0, len(DATA)) == DATA
    assert requests(proxy, "GET") == 2


def test_a_ranged_answer_that_is_short_is_no_end_of_the_object(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    direct.put("a", DATA)

    def shorter(answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-")]
        lines += [b"Content-Length: 50", b"Content-Range: bytes 100-149/%d" % len(DATA), b"Connection: close"]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body[:50]

    proxy.harm(once("GET", shorter))
    assert blobs.read("a", 100, 200) == DATA[100:300]
    with pytest.raises(BlobShort):
        blobs.read("a", len(DATA) - 10, 20)


@pytest.mark.parametrize(
    "answer",
    [(503, "SlowDown"), (500, "InternalError"), (429, "Throttling"), (400, "RequestTimeout")],
)
def test_what_may_pass_is_asked_again_after_a_pause(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy, waits: Waits, answer: tuple[int, str]
) -> None:
    direct.put("a", DATA)
    proxy.harm(once("GET", lambda _answer: status(*answer)))
    assert blobs.read("a", 0, 10) == DATA[:10]
    assert len(waits.pauses) == 1


def test_what_lasts_is_unavailable_and_says_what_was_answered(
    blobs: ObjectBlobs, proxy: Proxy, waits: Waits
) -> None:
    proxy.instead(lambda _request: status(503, "SlowDown"))
    with pytest.raises(Unavailable, match=r"does not answer \(HTTP 503 SlowDown\)") as caught:
        blobs.read("a", 0, 1)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert caught.value.retry_after_s
    assert waits.now_s >= PATIENCE_S
    assert waits.pauses == sorted(waits.pauses[:5]) + waits.pauses[5:]  # they grow up to their limit
    with pytest.raises(Unavailable):
        list(blobs.list(""))
    with pytest.raises(Unavailable):
        blobs.put("a", b"1")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, "AccessDenied"), "HTTP 403 AccessDenied"),
        ((301, "PermanentRedirect"), "the region or the endpoint is wrong"),
        ((501, "NotImplemented"), "HTTP 501 NotImplemented"),
    ],
)
def test_a_refusal_is_not_repeated(
    blobs: ObjectBlobs, proxy: Proxy, waits: Waits, answer: tuple[int, str], said: str
) -> None:
    proxy.instead(lambda _request: status(*answer))
    with pytest.raises(Unavailable, match=f"refuses it .*{said}"):
        list(blobs.list(""))
    assert not waits.pauses


def test_a_store_without_room_is_full_and_not_unavailable(blobs: ObjectBlobs, proxy: Proxy) -> None:
    proxy.instead(lambda request: status(507, "XMinioStorageFull") if request.startswith(b"PUT") else None)
    with pytest.raises(Exhausted, match="no space left") as caught:
        blobs.put("a", b"1")
    assert caught.value.reason == "STORE_FULL"


# --- several endpoints


def test_another_endpoint_answers_at_once_and_is_kept(
    opening: Opening, direct: ObjectBlobs, proxy: Proxy, s3: S3Server, waits: Waits
) -> None:
    direct.put("a", DATA)
    proxy.instead(lambda _request: b"")  # the connection is closed without an answer
    blobs = opening(proxy.endpoint, s3.endpoint)
    assert blobs.read("a", 0, 10) == DATA[:10]
    assert (len(proxy.requests), waits.pauses) == (1, [])
    blobs.put("b", DATA)
    assert blobs.size("b") == len(DATA)
    assert len(proxy.requests) == 1


def test_an_endpoint_that_stays_silent_is_given_up_and_the_next_one_asked(
    opening: Opening,
    direct: ObjectBlobs,
    proxy: Proxy,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direct.put("a", DATA)
    asked, ended = threading.Event(), threading.Event()

    def stall(_request: bytes) -> bytes:
        asked.set()
        ended.wait()
        return b""

    proxy.instead(stall)
    monkeypatch.setattr(object_urls, "READ_S", 3)
    assert opening(proxy.endpoint, s3.endpoint).read("a", 0, 10) == DATA[:10]
    assert asked.is_set()
    ended.set()


def test_an_endpoint_that_refuses_connections_is_passed_by(
    opening: Opening, proxy: Proxy, s3: S3Server, waits: Waits
) -> None:
    proxy.stop()
    blobs = opening(proxy.endpoint, s3.endpoint)
    blobs.put("a", DATA)
    assert blobs.read("a", 0, len(DATA)) == DATA
    assert waits.pauses == []


def test_a_place_with_words_of_errors_in_its_name_is_no_error_of_that_kind(
    proxy: Proxy, s3: S3Server, tmp_path: Path, waits: Waits
) -> None:
    proxy.stop()
    opened = open_blobs(s3.url("redirect/certificate.dns-error", proxy.endpoint), os.environ, str(tmp_path))
    assert isinstance(opened, ObjectBlobs)
    blobs = ObjectBlobs(
        opened.place, opened.endpoints, str(tmp_path), pause=waits.pause, now_s=lambda: waits.now_s
    )
    with pytest.raises(Unavailable, match=r"does not answer \(the connection was refused"):
        blobs.size("timed-out.certificate")
    assert waits.now_s >= PATIENCE_S


def test_missing_credentials_are_named_where_the_machine_has_no_role_either(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="no credentials in the environment or a file, and no role"):
        opening().put("a", DATA)


# --- writing


def test_a_put_whose_reply_is_lost_is_settled_by_a_look_and_not_sent_again(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    proxy.harm(once("PUT", lambda _answer: b""))
    blobs.put("a", DATA)
    assert requests(proxy, "PUT") == 1
    assert direct.read("a", 0, len(DATA)) == DATA


def test_a_put_that_did_not_arrive_is_sent_again(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    lost = iter([b""])
    proxy.instead(lambda request: next(lost, None) if request.startswith(b"PUT") else None)
    writer = blobs.create()
    writer.write(DATA[:1000])
    writer.write(DATA[1000:])
    writer.commit("a")
    assert requests(proxy, "PUT") == 2
    assert direct.read("a", 0, len(DATA)) == DATA


@pytest.mark.parametrize("other", [b"other", DATA[:-1] + b"x"], ids=["another size", "another byte"])
def test_a_doubtful_put_finds_another_object_and_does_not_overwrite_it(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy, other: bytes
) -> None:
    def lost(request: bytes) -> bytes | None:
        if not request.startswith(b"PUT"):
            return None
        direct.put("a", other)
        return b""

    proxy.instead(lost)
    with pytest.raises(BlobExists):
        blobs.put("a", DATA)
    assert direct.read("a", 0, len(other)) == other


def test_a_replacement_whose_reply_is_lost_is_in_place(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    direct.put("a", b"old")
    proxy.harm(once("PUT", lambda _answer: b""))
    writer = blobs.create()
    writer.write(DATA)
    writer.replace("a")
    assert direct.read("a", 0, len(DATA)) == DATA


def test_a_put_that_never_gets_an_answer_is_not_acknowledged(blobs: ObjectBlobs, proxy: Proxy) -> None:
    proxy.instead(lambda request: b"" if request.startswith(b"PUT") else None)
    with pytest.raises(Unavailable, match="the connection broke"):
        blobs.put("a", DATA)


def test_a_pack_is_put_with_one_request(blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy) -> None:
    writer = blobs.create()
    for number in range(12):
        writer.write(bytes([number]) * 1024 * 1024)
    writer.commit("a")
    assert requests(proxy, "PUT") == 1
    assert requests(proxy, "POST") == 0
    assert direct.size("a") == 12 * 1024 * 1024


# --- deleting and listing


def test_a_deletion_whose_reply_is_lost_is_done(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    direct.put("a", b"1")
    proxy.harm(once("DELETE", lambda _answer: b""))
    blobs.delete("a")
    with pytest.raises(BlobMissing):
        direct.size("a")
    with pytest.raises(BlobMissing):
        blobs.delete("a")


def test_a_listing_that_breaks_in_the_middle_goes_on_behind_the_last_name(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    names = [f"p/{number:04}" for number in range(1040)]
    with Threads(8, "put") as threads:
        list(threads.map(lambda name: direct.put(name, b""), names))
    proxy.harm(once("GET", lambda answer: answer[: len(answer) // 2], containing="continuation-token"))
    assert [name for name, _ in blobs.list("p")] == names
    lists = [line for line in proxy.requests if "list-type=2" in line]
    assert len(lists) == 3
    assert "start-after" in lists[-1]


def test_a_deep_listing_is_read_ahead_by_its_children_and_resumed_in_each(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PAGE_NAMES", 20)
    names = [f"p/{shard:02x}/{number:04}" for shard in range(3) for number in range(15)]
    with Threads(8, "put") as threads:
        list(threads.map(lambda name: direct.put(name, b""), names))
    proxy.harm(once("GET", lambda answer: answer[: len(answer) // 2], containing="p%2F01%2F"))
    assert [name for name, _ in blobs.list("p")] == names
    lists = [line for line in proxy.requests if "list-type=2" in line]
    asked = [re.findall(rf"prefix=[^& ]*%2F0{shard}%2F[& ]", " ".join(lists)) for shard in range(3)]
    assert list(map(len, asked)) == [1, 2, 1]


def test_a_listing_that_cannot_go_on_never_looks_like_its_end(
    blobs: ObjectBlobs, direct: ObjectBlobs, proxy: Proxy
) -> None:
    direct.put("p/1", b"")
    proxy.instead(lambda _request: b"")
    with pytest.raises(Unavailable):
        list(blobs.list("p"))


# --- what the engine does, tried before anything is kept in it


def test_an_engine_that_does_what_is_needed_passes_and_nothing_of_the_trial_stays(blobs: ObjectBlobs) -> None:
    check(blobs)
    assert list(blobs.list(PROBES)) == []


def _reversed(answer: bytes) -> bytes:
    """A listing with its names in the other order."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.findall(rb"<Contents>.*?</Contents>", body)
    other = body.replace(b"".join(found), b"".join(reversed(found)))
    return head + b"\r\n\r\n" + other


def _whole(answer: bytes) -> bytes:
    """An answer to a range that takes no notice of it."""
    return answer.replace(b"206 Partial Content", b"200 OK", 1)


@pytest.mark.parametrize(
    ("then", "containing", "what"),
    [
        (_reversed, "list-type=2", "does not list names in byte order"),
        (
            lambda answer: re.sub(rb"<Size>4096", b"<Size>4097", answer),
            "list-type=2",
            "lists 0/0 of 4,097 bytes, 0/1",
        ),
        (
            lambda answer: answer[:-1] + bytes([answer[-1] ^ 1]),
            PROBES,
            "does not return an object as it was put",
        ),
        (_whole, PROBES, "ignores ranges"),
        (lambda _answer: status(404, "NoSuchKey"), PROBES, "cannot be read"),
    ],
)
def test_an_engine_that_is_not_safe_is_refused_by_name(
    blobs: ObjectBlobs, proxy: Proxy, then: Callable[[bytes], bytes], containing: str, what: str
) -> None:
    proxy.harm(once("GET", then, containing=containing))
    with pytest.raises((UnsafeStore, Unavailable), match=what):
        check(blobs)


def test_an_engine_that_keeps_what_was_deleted_is_refused(blobs: ObjectBlobs, proxy: Proxy) -> None:
    gone = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    proxy.instead(lambda request: gone if request.startswith(b"DELETE") else None)
    with pytest.raises(UnsafeStore, match="was deleted still exists"):
        check(blobs)


def test_an_engine_that_gives_old_bytes_after_a_replacement_is_refused(
    blobs: ObjectBlobs, proxy: Proxy
) -> None:
    puts = iter(
        [None] * 4 + [b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n']
    )
    proxy.instead(lambda request: next(puts) if request.startswith(b"PUT") else None)
    with pytest.raises(UnsafeStore, match="replaced"):
        check(blobs)


def test_a_range_behind_the_end_is_no_broken_connection_to_an_engine_that_answers_it_otherwise() -> None:
    text = "Generic MicrosoftAzure error: Wanted range starting at 10, but object was only 10 bytes long"
    failure = failure_of(GenericError(text))
    assert (failure.status, failure.passing) == (NO_RANGE, False)
