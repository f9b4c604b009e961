"""The service over gRPC. Only this package and app know gRPC."""
