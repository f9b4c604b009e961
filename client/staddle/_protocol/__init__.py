"""The protocol as values: messages to values and back, and the checks of what a server answers."""
