"""TODO-DOC fitune_plugins.loaders."""
