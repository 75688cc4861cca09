"""Run the command line as a module: `python -m factory`."""

from __future__ import annotations

from factory.cli import main

if __name__ == "__main__":
    main()
