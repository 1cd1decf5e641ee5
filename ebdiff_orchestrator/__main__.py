"""`ebdiff`, and `python -m ebdiff_orchestrator` where no `ebdiff` is on the path."""

import sys

from ebdiff_orchestrator import shadowing


def main() -> None:
    """Run the command line, if what it imports is ours; else exit 2."""
    told = shadowing()
    if told is not None:
        print(f"ebdiff: {told}", file=sys.stderr)
        sys.exit(2)
    from ebdiff_orchestrator.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
