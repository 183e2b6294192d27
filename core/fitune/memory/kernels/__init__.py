"""TODO-DOC fitune.memory.kernels."""
