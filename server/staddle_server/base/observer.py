"""What the service reports about its work while it works, for whoever counts it."""


class Observer:
    """Hears of calls, of store and catalog, and of what collections free; does nothing by itself.

    Called from any thread, and often: implementations are quick and never raise.
    """

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call has ended, with this name of its code."""

    def received(self, size_bytes: int) -> None:
        """A message has arrived."""

    def sent(self, size_bytes: int) -> None:
        """A message was handed to the transport."""

    def store_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        """An operation of the store has ended. Looking for what is not there is no failure."""

    def catalog_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        """A transaction of the catalog has ended, with the caller's work in it."""

    def freed(self, size_bytes: int) -> None:
        """A collection has removed this much from the store."""


NOTHING = Observer()
