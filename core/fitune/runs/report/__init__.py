"""`ft report`: runs as one page of HTML, for a browser without a network.

Begin with `page.py`, which lays out what `collect.py` has read of the runs' directories. `chart.py` draws a series of
`series.py` as SVG; `style.py` is the page's look in a light and a dark theme. Whatever comes of a run is text there.
"""
