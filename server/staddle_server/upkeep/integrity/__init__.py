"""Finds damage and repairs it: check, scrub, repair, parity, second copies."""
