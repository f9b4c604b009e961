"""Events: what the service knows to be wrong, once when it begins and once when it is over."""
