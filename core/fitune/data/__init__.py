"""From the rows of a recipe's sources to examples that are ready to be batched: counted, guarded, cached.

The stages themselves are plugins; here they are chained, and what comes out is kept on disk under a key of all that it
depends on. Which rows make up a step is decided here too, by seed and position alone.

May import `plugin` and `errors`; a stranger to `recipe`. Begin with `gather` in `run_data.py`, then `prepare.py`;
`targets.py` leaves out what has nothing to train on, `cache.py` and `cache_key.py` keep the rows, `sampler.py` orders
them, `survey.py` is what `ft data` counts, `preview.py` keeps what it showed.
"""
