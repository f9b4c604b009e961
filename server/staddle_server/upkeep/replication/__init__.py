"""Copies the store to another place, and keeps that copy up to date."""
