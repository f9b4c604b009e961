"""The catalog's record of an open upload: read back, or refused with the reason."""

import pytest
from staddle_server.base.errors import Fault
from staddle_server.base.types import Entry, Profile
from staddle_server.manifest.content import ContentState
from staddle_server.upload.progress import OpenEntry, Progress, decode_progress, encode_progress


def test_any_unreadable_durable_point_is_an_error_that_says_so():
    state = ContentState(Profile.FIXED, 0, 0, ())
    good = encode_progress(Progress(1, open_entry=OpenEntry(Entry(b"a", owner="root"), state, 0)))
    assert decode_progress(good).open_entry is not None
    for bad in (good.replace(b"root", b"\xff\xfe\xfd\xfc"), good[:-1], b"\x91" * 5000, b"\xc1"):
        with pytest.raises(Fault, match="durable point"):
            decode_progress(bad)
