"""TODO-DOC fitune_plugins.data.sources."""
