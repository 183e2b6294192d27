"""The command line `ft`, one file a command. Begin with `main.py`.

A file named after a command holds its options and imports little; what a command does with torch is imported once it
runs. May import every other wing; none imports this one.
"""

from fitune.cli.main import main

__all__ = ["main"]
