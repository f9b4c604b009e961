"""What ends servers at named steps is in tests/crash. Behind everything else: that directory has a conftest.py too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "crash"))
