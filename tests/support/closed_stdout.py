"""`closed_stdout.py staddle list` is `staddle list >&-`, for `forked.run`: as the interpreter starts where that stream is closed."""

import os
import sys
from importlib import import_module

from forked_child import MAINS

del sys.argv[0]
os.close(1)
sys.stdout = sys.__stdout__ = None
import_module(MAINS[sys.argv[0]]).main()
