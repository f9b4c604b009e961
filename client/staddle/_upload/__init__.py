"""Bytes to a dataset: one Backup stream after another until everything is durable."""
