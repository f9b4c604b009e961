"""Packages that only an extra of `pip install staddle` brings."""

from typing import Final

CLI_PACKAGES: Final = frozenset({"click", "pathspec", "pyfastcdc", "rich", "zstandard"})
"""What the extra `cli` installs."""
