"""What works inside one tenant: secrets, records, and reading and writing of chunks."""
