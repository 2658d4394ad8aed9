"""The command line, `dooly`. What a command needs is imported inside it, so that `dooly --help` answers at once."""

from dooly.cli._app import main

__all__ = ["main"]
