"""Runs, from what they left in their directories: `ft runs`. Imports no torch."""
