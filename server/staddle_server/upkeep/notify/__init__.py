"""Notification targets: where events go, how one is reached, and the deliveries."""
