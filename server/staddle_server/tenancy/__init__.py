"""What works inside one tenant: its secrets, its records, and reading and writing of its chunks."""
