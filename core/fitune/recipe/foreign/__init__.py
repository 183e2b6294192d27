"""Configurations of other tools: TRL, axolotl and LLaMA-Factory, whole; Unsloth's and ms-swift's keys by name.

What each key is here stands once, in the tables `keys_train`, `keys_model`, `keys_data` and `keys_run`: errors take it
from there (`told`), docs/migration.md is made of it (`known`), and `convert` turns a whole file into a recipe by it.
Begin with `convert`; `source` keeps account of each key of such a file, `fitune.recipe.draft` is the recipe that is
written, and what takes more than a copy is in `to_model`, `to_adapter`, `to_objective`, `to_data`, `to_train` and
`to_rest`.

May import `plugin` and `errors`, and nothing of `recipe` but `draft`: its errors are told by it.
"""
