"""TODO-DOC fitune_plugins.adapters."""
