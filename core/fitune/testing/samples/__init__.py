"""Plugins to begin with, one of each kind: `ft plugins new` writes one under a name of one's own, and tests run them.

Each is a module that works as it stands; "sample" and "Sample" in it become the new name.
"""
