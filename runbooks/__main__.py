"""`python -m runbooks`: the command where its script is not on PATH."""

from runbooks.cli.program import main

main()
