"""The program `factory`: starts the command line, or says why it cannot start.

Outside of the package, since another one of that name may lie in its place.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    """Run the command line. Exits with 1 where factory_boy is installed in the same place."""
    try:
        from factory.cli import main as command_line
    except ImportError:
        try:
            version = importlib.metadata.version("factory_boy")
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None:
            raise
        sys.exit(
            f"error: factory_boy {version} is installed here; its package is called factory too\n"
            "  fix: give croco-factory an environment of its own, or pip uninstall factory_boy and "
            "install croco-factory again"
        )
    command_line()
