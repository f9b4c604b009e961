"""What the table of routes consists of: operations, their parameters, their bodies, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message
from starlette.requests import Request

from staddle_server.api.gate import Call
from staddle_server.api.http.exchange import Exchange
from staddle_server.api.http.rest.kinds import ParameterKind
from staddle_server.base.types import TokenRole

PATH: Final = "path"
QUERY: Final = "query"


class RestParameter(NamedTuple):
    """A parameter of an operation.

    Attributes:
        name: Its name in the template, or in the query.
        kind: What it may be.
        about: What it is for, in words.
        field: The field of the RPC's request that gets it, in JSON; "": its name.
        many: Whether it may come several times; then its value is a list.
        required: Whether it must be given; what is in the path always is.
        where: PATH or QUERY.

    """

    name: str
    kind: ParameterKind
    about: str
    field: str = ""
    many: bool = False
    required: bool = False
    where: str = QUERY


class Body(NamedTuple):
    """What an operation takes as its body.

    Attributes:
        media_types: What it may be, by Content-Type.
        message: The message that is JSON in it; None: bytes, which the handler reads as they arrive.
        without: The message's fields that come from elsewhere, in JSON.
        required: The message's fields that must be given, in JSON.
        example: The message in JSON, as somebody might send it.

    """

    media_types: tuple[str, ...]
    message: type[Message] | None = None
    without: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] = {}


class Answer(NamedTuple):
    """What an operation answers if it succeeds.

    Attributes:
        status: The status.
        about: What the answer is, in words.
        message: The message that is JSON in it; None: no JSON.
        media_type: The type of other answers; JSON: an error; "": no content.
        headers: Headers of its own, by name, with what they say.

    """

    status: int
    about: str
    message: type[Message] | None = None
    media_type: str = ""
    headers: Mapping[str, str] = {}


class RestRequest(NamedTuple):
    """One request, checked: its caller has the role, and its parameters are valid.

    Attributes:
        call: The call; long work asks its `check`.
        given: The parameters that were given, by name.
        request: The request, for its headers.
        body: The body of a JSON operation; empty for others.
        exchange: The request as the connection of its call.
        pieces: Yields the body of an operation that takes bytes, as it arrives; none for others. Whoever keeps
            it waiting keeps the sender waiting.

    """

    call: Call
    given: Mapping[str, Any]
    request: Request
    body: bytes
    exchange: Exchange
    pieces: Iterator[bytes] = iter(())

    @property
    def is_head(self) -> bool:
        """Whether only the head of the answer is wanted."""
        return self.request.method == "HEAD"


class Streamed(NamedTuple):
    """An answer that is sent as it is made.

    A reader that is slow makes the iterator wait; one that goes away ends it. If the iterator raises, the
    connection is broken, so that no reader takes what it has for all.

    Attributes:
        status: The status.
        headers: The headers. With `content-length`, that many bytes must follow.
        pieces: The body. Is not asked for anything if the request is HEAD. It is closed in any case.

    """

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


Handler = Callable[[RestRequest], Message | bytes | Streamed]
"""Answers a request: with a message, encoded or not, which becomes JSON; or with a stream."""


class Operation(NamedTuple):
    """A row of the table: one thing that can be done at one address.

    Attributes:
        verb: The HTTP method. GET answers HEAD, too.
        path: The template of the address. "{name}" is one segment, decoded; "{name...}" at its end is all
            that follows, decoded segment by segment.
        name: Its name in the log and in metrics: that of the RPC if it is one.
        role: The least role that a token needs.
        about: What it does, in one sentence.
        handler: Answers.
        answers: What it answers if it succeeds.
        parameters: Its parameters, those of the path first.
        body: What it takes; None: nothing.
        errors: The codes of errors that it has besides those of all operations, as in `connect.STATUSES`.
        more: What else callers should know, in sentences.
        is_stream: Whether it takes a slot of a stream, because it takes or answers more than a message.
        id: Its name in OpenAPI, where no other operation has the same; "": its name.
        tag: The heading that it stands under, for people.

    """

    verb: str
    path: str
    name: str
    role: TokenRole
    about: str
    handler: Handler
    answers: tuple[Answer, ...]
    parameters: tuple[RestParameter, ...] = ()
    body: Body | None = None
    errors: tuple[str, ...] = ()
    more: str = ""
    is_stream: bool = False
    id: str = ""
    tag: str = ""

    def of(self, where: str) -> Iterable[RestParameter]:
        """Return the parameters of the path or of the query."""
        return [each for each in self.parameters if each.where == where]
