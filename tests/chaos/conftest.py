"""What ends servers at named steps is in tests/crash. Behind everything else: that directory has a conftest.py too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chaos_small_site import SmallSite
    from seaweed import S3Server

sys.path.append(str(Path(__file__).parents[1] / "crash"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[SmallSite]:
    from chaos_site import environment
    from chaos_small_site import SmallSite

    with ExitStack() as stopping:
        stopping.enter_context(environment(tmp_path_factory.mktemp("cache")))
        yield SmallSite(tmp_path_factory.mktemp("site"), stopping, s3_server)
