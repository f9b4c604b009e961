"""Standard streams that whoever started the program has closed."""

import os
import sys


def open_standard_streams() -> None:
    """Makes closed standard streams /dev/null, before the program opens anything else.

    Otherwise the next file that is opened gets such a number, and what is printed there, also by libraries in C, ends up in that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number, which is that of the stream.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
