"""Directories and files as the operating system has them: walked, read, excluded, named."""
