"""What a provider of each kind must keep to, tried on a tiny model: `fitune.testing` says it to plugins' tests, `ft
plugins check` to a terminal. Every function raises `AssertionError`, which says what of the contract is broken.
"""
