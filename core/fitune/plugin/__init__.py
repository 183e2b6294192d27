"""What a plugin implements, gives and is told; and the registry, which finds plugins and isolates the broken ones.

All that plugins may use of it, `import fitune` exports: nobody else's code imports this wing by its own name. Nothing
here imports torch before it is called.

May import `errors` alone. Begin with `hookspecs.py` and `eventspecs.py` (every hook, with an example) and `records.py`
(what plugins give); then `dataflow.py`, `events.py` and `strategy.py` (what flows, is told and is changed), and
`registry.py`; `listening.py` is the listeners of one run.
"""
