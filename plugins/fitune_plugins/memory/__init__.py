"""TODO-DOC fitune_plugins.memory."""
