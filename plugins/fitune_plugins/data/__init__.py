"""TODO-DOC fitune_plugins.data."""
