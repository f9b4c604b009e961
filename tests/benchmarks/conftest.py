"""The benchmarks are no installed package: they are found from the top of the project."""

import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks read /proc: Linux only", allow_module_level=True)
