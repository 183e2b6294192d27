"""TODO-DOC fitune.memory.trace."""
