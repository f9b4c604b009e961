"""The service as REST: addresses for datasets, backups and files, all from one table."""
