"""Data sources: stages that take nothing and give rows, `[[data.source]] use = "NAME"`.

`files.py` is what sources of local files have in common, `strict_json.py` how the two that read JSON read it,
`arrow_values.py` what the two that read Arrow leave out.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.data.sources.jsonl",  # JSON Lines
    "fitune_plugins.data.sources.json_file",  # "json": one array of objects
    "fitune_plugins.data.sources.csv_file",  # "csv": comma- or tab-separated values
    "fitune_plugins.data.sources.parquet",  # Parquet
    "fitune_plugins.data.sources.txt",  # plain text
    "fitune_plugins.data.sources.hf_dataset",  # a data set of the hub
)
"""Dotted names of the modules, in the order in which they are loaded."""
