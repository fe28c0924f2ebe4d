"""Who may sign which models."""
