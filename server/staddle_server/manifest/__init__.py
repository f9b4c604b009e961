"""Entries ↔ pages: build a manifest, merge changes over a base, find a path, list a directory, compare two
manifests.
"""
