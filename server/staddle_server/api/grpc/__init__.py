"""The service over gRPC. The only room, with app, that knows gRPC."""
