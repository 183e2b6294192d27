"""TODO-DOC fitune.memory.oom."""
