"""Chunks ↔ segments ↔ packs ↔ blobs, tenant secrets and records: everything that is below `store/`."""
