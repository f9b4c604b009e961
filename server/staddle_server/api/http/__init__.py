"""The service over HTTP: Connect calls and metrics, on a listener of their own."""
