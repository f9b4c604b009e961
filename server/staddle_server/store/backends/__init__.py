"""Backends: one module for each kind of place that stores blobs. `open_blobs` picks one by the URL."""
