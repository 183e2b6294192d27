"""TODO-DOC fitune.compose."""
