"""`python -m staddle.command` is `staddle`."""

from staddle.command import main

main()
