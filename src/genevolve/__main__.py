"""`python -m genevolve`: the command line, where the `genevolve` script is not on the path."""

from genevolve.cli import main

main()
