"""The command line. Importing it imports neither torch nor a zoo: ``lwdna --help`` is quick."""

from lwdna.cli.application import main

__all__ = ["main"]
