"""TODO-DOC fitune.data."""
