"""`python -m goosestack`."""

from goosestack.cli import main

main()
