"""The places that keep blobs."""
