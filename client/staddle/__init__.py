"""The Staddle client: hand data to the service, and get it back."""
