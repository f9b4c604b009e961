"""Reads the configuration and joins the rooms: the only place, with cli, that names concrete classes."""
