"""Retention policies as messages and as values."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from staddle._base.figures import counted
from staddle.v1 import resources_pb2 as pb

from staddle_server.api import convert
from staddle_server.base import limits
from staddle_server.catalog import Retention
from staddle_server.upkeep.lifecycle.retention import UTC, Policy, Tag, decode_policy

_COUNTS: Final = ("keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly")


def policy_of(m: pb.RetentionPolicy) -> Policy:
    """Convert a policy; its numbers are checked where it is encoded."""
    for tag in m.keep_tags:
        convert.words(tag.key, "policy.keep_tags.key", limits.TAG_KEY_BYTES_MAX, empty=False)
        convert.words(tag.value, "policy.keep_tags.value", limits.TAG_VALUE_BYTES_MAX)
    return Policy(
        keep_within_s=whole_seconds(m.keep_within, "policy.keep_within", limits.RETENTION_S_MAX),
        keep_tags=tuple(Tag(tag.key, tag.value if tag.HasField("value") else None) for tag in m.keep_tags),
        time_zone=convert.words(m.time_zone, "policy.time_zone", limits.HOST_BYTES_MAX) or UTC,
        **{name: getattr(m, name) for name in _COUNTS},
    )


def whole_seconds(m: Duration, field: str, most_s: int) -> int:
    """Return a Duration of whole seconds."""
    if m.nanos or not 0 <= m.seconds <= most_s:
        raise convert.bad(field, f"use whole seconds, at most {counted(most_s // 86_400, 'day')}")
    return m.seconds


def retention_out(retention: Retention) -> pb.Retention:
    """Convert what protects a dataset's backups."""
    out = pb.Retention(minimum=convert.duration(retention.minimum_s), hold=convert.hold_out(retention.hold))
    if retention.policy:
        policy = decode_policy(retention.policy)
        out.policy.CopyFrom(
            pb.RetentionPolicy(
                keep_within=convert.duration(policy.keep_within_s) if policy.keep_within_s else None,
                keep_tags=[pb.RetentionTag(key=tag.key, value=tag.value) for tag in policy.keep_tags],
                time_zone=policy.time_zone,
                **{name: getattr(policy, name) for name in _COUNTS},
            )
        )
    return out
