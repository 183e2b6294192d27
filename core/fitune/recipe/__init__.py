"""From a TOML file to a recipe that can be run, or to all of its problems at once, each with file, table and line.

The records that a recipe is made of are in `fitune.plugin.recipe`, since plugins see them; here is how they are read
and checked.

May import `plugin` and `errors`; a stranger to `data`. Begin with `read_recipe` in `reader.py`; `tables.py` reads any
table and collects problems, `source.py` knows where each value stands, `chain.py` fills in data stages, `checks.py` and
`secrets.py` say no.
"""
