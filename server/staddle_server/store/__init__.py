"""Chunks ↔ segments ↔ packs ↔ blobs, and the tenants' secrets and records."""
