"""Standard streams that whoever started the program has closed."""

import os
import sys


def open_standard_streams(*, stdin: bool = True) -> None:
    """Makes closed standard streams /dev/null, before the program opens anything else.

    Otherwise the next file that is opened gets such a number, and what is printed there, also by libraries in C, ends up in that file.
    Without `stdin`, `sys.stdin` stays None, for programs that have to know; so does `sys.__stdout__` in any case.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the stream
            if name != "stdin" or stdin:
                setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
