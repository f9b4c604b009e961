"""What a person reads of an error: what happened to their thing and what to do, without the words of the protocol."""

import re
from typing import Final

import grpc

from staddle._errors import StaddleError
from staddle._transport.calls import METHODS
from staddle._transport.retry import RetryNotice

_UNFIT: Final = (
    "This command and the server do not understand each other. Update both to the same version of Staddle."
)
_AGAIN: Final = "Run the same command again"

WORDS: Final = {
    "BAD_FRAME": _UNFIT,
    "BAD_PAGE_TOKEN": _UNFIT,
    "BAD_SEQUENCE": _UNFIT,
    "COUNT_MISMATCH": "The server received something else than was sent, so no backup was made. Run the command again.",
    "DIGEST_MISMATCH": "Data arrived at the server changed, so no backup was made. Run the command again; if that recurs, "
    "check the memory of this machine.",
    "ENTRIES_OUT_OF_ORDER": _UNFIT,
    "INTERNAL": "The server failed at this; its log says why.",
    "LEASE_HELD": "Another token is writing this backup. Wait until it ends, or until the server lets it go a few minutes after it broke off.",
    "MISSING_CHUNKS": f"The server no longer has data that this backup relies on, so no backup was made yet. {_AGAIN}.",
    "NOT_IN_BASE": _UNFIT,
    "PERMISSION_DENIED": "Your token may not do this: it takes the role {role}.",
    "REQUEST_ID_REUSED": _UNFIT,
    "RESUME_REQUIRED": f"The server no longer knows how far this backup was. {_AGAIN}.",
    "STALE_EPOCH": "Another run of this backup has taken over, and this one has ended. Let the other one finish.",
    "UNAUTHENTICATED": "The server does not know this token: it is wrong, was revoked or has expired.",
    "UNFINISHED_STREAM": f"The backup was cut off before its end, so no backup was made. {_AGAIN}.",
    "UPLOAD_BUSY": "Another run of this backup is sending data. Wait until it ends, or stop it.",
    "UPLOAD_CLOSED": "This backup has ended meanwhile: it was finished, given up or has expired. Run the command again for another one.",
    "UPLOAD_NOT_FOUND": "The server has no such open upload: it has ended. `staddle uploads` lists those that are open.",
    "WRONG_SERVER": "Another server is writing this backup: {endpoint}. Use that one, or wait until it ends.",
}
"""By reason, instead of messages that speak of calls, epochs and fields. The messages of all other reasons are for people."""

TAKEN_OVER: Final = frozenset({"RESUME_REQUIRED", "WRONG_SERVER"})
"""Reasons for which the server that says them becomes the one that writes the backup."""

FIELDS: Final = {
    "at": "--at",
    "backup": "the backup",
    "backup.ago": "--at",
    "backup.at": "--at",
    "dataset": "the dataset",
    "every": "--every",
    "grace": "--grace",
    "host": "--host",
    "kinds": "--kind",
    "minimum": "--minimum",
    "mute_until_time": "--mute",
    "name": "--name",
    "paths": "the PATHs",
    "plan_token": "--plan",
    "policy": "the policy",
    "reason": "--reason",
    "root": "PATH",
    "since_time": "--since",
    "tags": "--tag",
    "until_time": "--until",
}
"""What a person calls a field of a request."""

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_OF_THE_PROTOCOL: Final = re.compile(rf"\b(?:{'|'.join(METHODS)}|[a-z]+(?:_[a-z]+)+|[A-Z]+_[A-Z_]+)\b")


def words_of(error: StaddleError) -> str:
    """The message of an error for a person, of one line."""
    # A status without a reason is from gRPC itself or a proxy, and its details are all there is.
    if error.reason in WORDS and "code" not in error.facts:
        facts = {"role": "of an administrator", "endpoint": "its address is not known"} | error.facts
        return WORDS[error.reason].format_map(facts)
    if error.reason == "BAD_FIELD" and isinstance(error.__cause__, grpc.RpcError):
        return _of_field(error)
    return error.message


def retry_words(notice: RetryNotice) -> str:
    """What to say before a failed call or stream is tried again."""
    if notice.error.reason in TAKEN_OVER and notice.error.address:
        return f"This backup continues on the server at {notice.error.address} from its last checkpoint."
    said = words_of(notice.error).rstrip(".")
    return f"{said}. Trying again in {notice.wait_s:.0f} s, for {notice.left_s:.0f} s more."


def speaks_of_the_protocol(message: str) -> bool:
    """Whether a message names a call, a field or a status code, outside of quotes."""
    return _OF_THE_PROTOCOL.search(_QUOTED.sub("", message)) is not None


def _of_field(error: StaddleError) -> str:
    field = error.facts.get("field", "")
    why = error.message.removeprefix(f"{field}: ")
    if speaks_of_the_protocol(why):
        return _UNFIT
    if why == error.message:
        return why
    return f"{FIELDS[field]}: {why}" if field in FIELDS else _UNFIT
