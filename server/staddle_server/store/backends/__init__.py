"""The backends: one module for each kind of place that keeps blobs. `open_blobs` finds the one that a URL names."""
