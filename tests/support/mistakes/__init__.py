"""Mistakes in recipes, a file to a table of theirs, and what is printed of each."""
