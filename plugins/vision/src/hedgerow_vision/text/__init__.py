"""Finding and reading text."""
