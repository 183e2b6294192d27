"""TODO-DOC fitune.train."""
