"""Where the processor time of a process goes."""
