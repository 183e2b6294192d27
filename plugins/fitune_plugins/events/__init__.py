"""TODO-DOC fitune_plugins.events."""
