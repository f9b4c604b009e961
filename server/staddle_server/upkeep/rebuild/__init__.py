"""Rebuilds the catalog from the store alone."""
