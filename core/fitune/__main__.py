"""`python -m fitune` is `ft`; `accelerate launch -m fitune run RECIPE` runs in several processes."""

from fitune.cli.main import main

main()
