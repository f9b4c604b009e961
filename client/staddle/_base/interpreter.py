"""How this Python was built. As a program: ends with 0 if it is optimised, else with 1."""

import os
import platform
import sys
import sysconfig


def is_optimised() -> bool:
    """Whether it was built with profile-guided optimisation. Without it Staddle takes about a quarter more processor time.

    A build says so itself. Those of distributions are all optimised, and say only that they are the system's (PEP 668).
    """
    built_with = str(sysconfig.get_config_var("CONFIG_ARGS"))
    managed = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return "--enable-optimizations" in built_with or os.path.exists(managed) or os.name == "nt"


def interpreter() -> str:
    """Its version and build: "Python 3.11.2, an optimised build"."""
    build = "an optimised build" if is_optimised() else "built without optimisation"
    return f"Python {platform.python_version()}, {build}"


if __name__ == "__main__":
    sys.exit(not is_optimised())
