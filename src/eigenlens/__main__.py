"""Run the command line: `python -m eigenlens`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
