"""`python -m prevox`."""

from prevox.cli.main import main

main()
