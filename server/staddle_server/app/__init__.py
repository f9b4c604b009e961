"""Reads the configuration and joins the packages: only this one and cli name concrete classes."""
