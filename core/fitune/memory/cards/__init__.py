"""Graphics cards: how much memory a run may take of them, and how fast they compute and copy.

Begin with `find_card` in `cards.py`, which reads `cards.toml`; `observed.py` is what runs on this machine have shown,
`check.py` the check of a card's name in a recipe. How fast a card is: `bench.py` measures it (`ft bench`), `rates.py`
keeps and finds what was measured, `pace.py` makes seconds of it. Imports no torch before it is asked for this machine's
card.
"""
