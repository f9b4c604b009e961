"""The programs that are measured, and the machine that measures."""
