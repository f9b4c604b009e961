"""Connections, calls and retries: the only room that handles a gRPC error."""
