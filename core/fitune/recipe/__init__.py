"""TODO-DOC fitune.recipe."""
