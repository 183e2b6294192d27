"""TODO-DOC fitune.memory.allocator."""
