"""protobuf ↔ domain values; authentication; the error table. The only room, with app, that knows gRPC."""
