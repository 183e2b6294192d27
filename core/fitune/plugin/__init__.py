"""TODO-DOC fitune.plugin."""
