"""`python -m factory.cli …`: the same as `factory …`."""

from factory.cli import main

main()
