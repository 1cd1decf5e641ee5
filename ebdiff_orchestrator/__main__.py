"""`python -m ebdiff_orchestrator`: the command line, where no `ebdiff` is on the path."""

from ebdiff_orchestrator.cli import main

main()
