"""Graphics cards: how much memory a run may take of them, and how fast they compute and copy.

Begin with `find_card` in `cards.py`, which reads `cards.toml`; `observed.py` is what runs on this machine have shown,
`check.py` the check of a card's name in a recipe. Imports no torch before it is asked for this machine's card.
"""
