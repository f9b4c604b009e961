"""The dashboard: pages for people, on the HTTP listener."""
