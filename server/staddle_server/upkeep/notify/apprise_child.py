"""The process that sends one message with Apprise: it gets JSON on its standard input, and says nothing secret."""

import json
import logging
import sys
from typing import Any


def main() -> None:
    """Send the message; exit with what the service is called if it refuses."""
    try:
        import apprise
    except ImportError:
        sys.exit("the extra `apprise` is not installed: pip install 'staddle[server,apprise]'")
    logging.disable()  # what the library logs may name a secret
    given: dict[str, Any] = json.load(sys.stdin.buffer)
    service = apprise.Apprise.instantiate(given["url"])
    if service is None:
        sys.exit("Apprise knows no service with this URL")
    sender = apprise.Apprise()
    sender.add(service)
    if not sender.notify(title=given["title"], body=given["body"]):
        sys.exit(f"the service {service.service_name} did not take the message")


if __name__ == "__main__":
    main()
