"""The Staddle server: keeps what clients hand it, and gives it back."""

__version__ = "0.1.0"
