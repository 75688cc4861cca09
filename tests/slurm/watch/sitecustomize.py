"""Writes down whom every Python process asks for or connects to, for tests of the air gap."""

import os
import sys
from pathlib import Path


def _watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        said = f"connect {arguments[1][0]}"
    elif event == "socket.getaddrinfo":
        said = f"look up {arguments[0]}"
    else:
        return
    with Path(os.environ["FACTORY_WATCHED"]).open("a") as file:
        file.write(said + "\n")


if "FACTORY_WATCHED" in os.environ:
    sys.addaudithook(_watch)
