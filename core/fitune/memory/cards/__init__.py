"""TODO-DOC fitune.memory.cards."""
