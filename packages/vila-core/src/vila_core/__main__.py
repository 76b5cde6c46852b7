"""`python -m vila_core` is the program `vila`."""

from vila_core.cli.main import main

main()
